"""Readers and their answers: `python jobs/readers.py queue | agree | exchange --help`."""

from pneumo_ray.config import run_job
from pneumo_ray.readers.config import AgreeConfig, ExchangeConfig, QueueConfig


def main(config: QueueConfig | AgreeConfig | ExchangeConfig) -> None:
    match config:
        case QueueConfig():
            from pneumo_ray.readers.queue import write_queue

            write_queue(config)
        case AgreeConfig():
            from pneumo_ray.report.agreement import write_agreement

            write_agreement(config)
        case ExchangeConfig():
            from pneumo_ray.readers.exchange import exchange

            exchange(config)


if __name__ == "__main__":
    run_job(QueueConfig | AgreeConfig | ExchangeConfig, main)
