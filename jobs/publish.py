"""Results as DICOM objects: `python jobs/publish.py --scores SCORES --model RUN/model --to dicomweb+http://HOST:8042/dicom-web`."""

from pneumo_ray.job import run_job
from pneumo_ray.pacs.config import PublishConfig


def main(config: PublishConfig) -> None:
    from pneumo_ray.pacs.publish import publish

    publish(config)


if __name__ == "__main__":
    run_job(PublishConfig, main)
