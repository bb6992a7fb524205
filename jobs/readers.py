"""Readers and their answers: `python jobs/readers.py queue | page | agree | exchange --help`."""

from pneumo_ray.job import run_job
from pneumo_ray.readers.config import AgreeConfig, ExchangeConfig, QueueConfig
from pneumo_ray.readers.page_config import PageConfig


def main(config: QueueConfig | PageConfig | AgreeConfig | ExchangeConfig) -> None:
    match config:
        case QueueConfig():
            from pneumo_ray.readers.queue import write_queue

            write_queue(config)
        case PageConfig():
            from pneumo_ray.report.reading_page import write_reading_page

            write_reading_page(config)
        case AgreeConfig():
            from pneumo_ray.report.agreement import write_agreement

            write_agreement(config)
        case ExchangeConfig():
            from pneumo_ray.readers.exchange import exchange

            exchange(config)


if __name__ == "__main__":
    run_job(QueueConfig | PageConfig | AgreeConfig | ExchangeConfig, main)
