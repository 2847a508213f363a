"""A job class that both versions import, under the same name."""

from limpyd import fields

from limpyd_jobs import Job


class SharedJob(Job):
    """With fields of its own."""

    extra = fields.InstanceHashField(indexable=True)
    tags = fields.SetField(indexable=True)

    def run(self, queue):  # type: ignore[no-untyped-def]
        """Say who it is."""
        return self.identifier.hget()
