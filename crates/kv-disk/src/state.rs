//! What a database holds besides its records: position, log time and the newest snapshot.

use d_engine_state_machine::{Binding, LogId, SnapshotMetadata};
use redb::{ReadTransaction, TableDefinition, TableError, WriteTransaction};

use crate::error::Failure;

/// The format version of the tables. Raise it with every change of the format.
pub(crate) const FORMAT_VERSION: u64 = 2;

/// One record per key: numbers, little-endian. They change in the same transaction as the data.
const STATE: TableDefinition<'static, u8, &'static [u8]> = TableDefinition::new("state");
const FORMAT: u8 = 0;
const APPLIED: u8 = 1;
const SNAPSHOT: u8 = 2;
const BINDING: u8 = 3;

/// The position of a database and its other metadata.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct State {
    /// The last applied entry.
    pub(crate) position: LogId,
    /// The latest log time received, in UNIX milliseconds.
    pub(crate) time_ms: u64,
    /// Bytes of all records in a snapshot.
    pub(crate) content_bytes: u64,
    /// The metadata of the newest snapshot that the engine has reported.
    pub(crate) snapshot: Option<SnapshotMetadata>,
    /// The history that the records belong to; `None`: not bound yet.
    pub(crate) binding: Option<[u8; Binding::BYTES]>,
}

/// Why a state could not be read.
pub(crate) enum ReadError {
    Failed(Failure),
    Newer(u64),
    Damaged(&'static str),
}

impl<E: Into<Failure>> From<E> for ReadError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl State {
    /// Stores the state as part of the transaction.
    pub(crate) fn store(&self, transaction: &WriteTransaction) -> Result<(), Failure> {
        let mut table = transaction.open_table(STATE)?;
        table.insert(FORMAT, FORMAT_VERSION.to_le_bytes().as_slice())?;
        let (term, index) = (self.position.term.get(), self.position.index.get());
        let applied = [term, index, self.time_ms, self.content_bytes].map(u64::to_le_bytes);
        table.insert(APPLIED, applied.concat().as_slice())?;
        if let Some(SnapshotMetadata { last_included, checksum, format, .. }) = &self.snapshot {
            let (term, index) = (last_included.term.get(), last_included.index.get());
            let numbers = [term, index, u64::from(*format)].map(u64::to_le_bytes);
            let record = [&numbers.concat()[..], &checksum[..]].concat();
            table.insert(SNAPSHOT, record.as_slice())?;
        }
        if let Some(binding) = &self.binding {
            table.insert(BINDING, binding.as_slice())?;
        }
        Ok(())
    }

    /// The log time alone, of the same moment as the records: readers compare expiries with it.
    pub(crate) fn time_ms_in(transaction: &ReadTransaction) -> Result<u64, Failure> {
        let table = transaction.open_table(STATE)?;
        let applied = table.get(APPLIED)?;
        let numbers = applied.as_ref().and_then(|record| numbers::<4>(record.value()));
        numbers
            .map(|[_, _, time_ms, _]| time_ms)
            .ok_or_else(|| Failure::Damaged("its log time cannot be read".to_owned()))
    }

    pub(crate) fn read(transaction: &ReadTransaction) -> Result<Self, ReadError> {
        let table = match transaction.open_table(STATE) {
            Err(TableError::TableDoesNotExist(_)) => {
                return Err(ReadError::Damaged("its state table is missing"));
            }
            other => other?,
        };
        let record =
            |key| Ok::<_, ReadError>(table.get(key)?.map(|record| record.value().to_vec()));
        match record(FORMAT)?.as_deref().and_then(numbers::<1>) {
            Some([FORMAT_VERSION]) => {}
            Some([found]) => return Err(ReadError::Newer(found)),
            None => return Err(ReadError::Damaged("it has no format version")),
        }
        let applied = record(APPLIED)?;
        let Some([term, index, time_ms, content_bytes]) = applied.as_deref().and_then(numbers::<4>)
        else {
            return Err(ReadError::Damaged("its position cannot be read"));
        };
        let snapshot = match record(SNAPSHOT)? {
            None => None,
            Some(record) => {
                Some(metadata(&record).ok_or(ReadError::Damaged("its snapshot cannot be read"))?)
            }
        };
        let binding = match record(BINDING)? {
            None => None,
            Some(record) => {
                let binding = record.try_into();
                Some(binding.map_err(|_| {
                    ReadError::Damaged("the history that it is bound to cannot be read")
                })?)
            }
        };
        Ok(Self { position: LogId::of(term, index), time_ms, content_bytes, snapshot, binding })
    }
}

fn numbers<const N: usize>(record: &[u8]) -> Option<[u64; N]> {
    let (numbers, rest) = record.as_chunks::<8>();
    let numbers: &[[u8; 8]; N] = numbers.try_into().ok().filter(|_| rest.is_empty())?;
    Some(numbers.map(u64::from_le_bytes))
}

fn metadata(record: &[u8]) -> Option<SnapshotMetadata> {
    let (before, checksum) = record.split_at_checked(24)?;
    let [term, index, format] = numbers(before)?;
    let meta = SnapshotMetadata::new(LogId::of(term, index), checksum.try_into().ok()?);
    Some(meta.with_format(u32::try_from(format).ok()?))
}
