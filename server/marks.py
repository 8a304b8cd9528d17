"""What a message says beside what the strategy does: what the data are, what does not travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict

from fedwsa.data.federated import FederatedData
from fedwsa.fleet.size_rules import WHOLE
from fedwsa.wire.names import DATA_MARK, DATA_REFERENCE, SERVER_ROUND, SIZE, STAYING
from server.sizes import SizedModels


@dataclass(frozen=True)
class Marks:
    """By which clients know that they have what the server has.

    Attributes
    ----------
    data : mapping of str to str
        What their data must be, or be like.
    staying : mapping of str to str
        Size → marks of the tensors that do not travel, see
        :attr:`server.sizes.SizedModels.marks`.
    """

    data: Mapping[str, str]
    staying: Mapping[str, str]

    @classmethod
    def of(cls, data: FederatedData, sizes: SizedModels) -> Marks:
        """The marks of a run's data and models."""
        reference = data.reference
        if reference:
            return cls({DATA_REFERENCE: reference}, sizes.marks)
        return cls({DATA_MARK: data.mark}, sizes.marks)

    def added_to(self, content: RecordDict) -> RecordDict:
        """A content whose ConfigRecord has the marks; the content where no round is named."""
        for name, record in content.config_records.items():
            if SERVER_ROUND not in record:
                continue
            staying = self.staying.get(str(record.get(SIZE, WHOLE)), "{}")
            added = {**self.data, **({} if staying == "{}" else {STAYING: staying})}
            return RecordDict({**content, name: ConfigRecord({**record, **added})})
        return content
