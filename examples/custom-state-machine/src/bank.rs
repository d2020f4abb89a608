//! A bank as a replicated state machine: accounts, transfers, and an invariant (a transfer neither
//! creates nor destroys money).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use d_engine::{Entry, Error, LogId, Result, SnapshotMetadata, StateMachine, snapshot_checksum};
use serde::{Deserialize, Serialize};

/// The commands of a client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Opens an account with this balance.
    Open {
        /// The account's name.
        account: String,
        /// Its first balance.
        balance: u64,
    },
    /// Moves money.
    Transfer {
        /// Who pays.
        from: String,
        /// Who is paid.
        to: String,
        /// How much.
        amount: u64,
    },
}

/// The bank's replies. A refusal is a reply like any other; the node continues.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// Done; the balance of the account that was opened, or that paid.
    Done {
        /// After the command.
        balance: u64,
    },
    /// Nothing was changed.
    Refused {
        /// Why.
        reason: String,
    },
}

/// Everything that changes together, under one lock, so that a reader never sees half of a
/// transfer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Books {
    accounts: BTreeMap<String, u64>,
}

impl Books {
    fn execute(&mut self, command: Command) -> Reply {
        match command {
            Command::Open { account, balance } => {
                if self.accounts.contains_key(&account) {
                    return refused(format!("the account {account:?} already exists"));
                }
                self.accounts.insert(account, balance);
                Reply::Done { balance }
            }
            Command::Transfer { from, to, amount } => self.transfer(&from, &to, amount),
        }
    }

    fn transfer(&mut self, from: &str, to: &str, amount: u64) -> Reply {
        let Some(paying) = self.accounts.get(from).copied() else {
            return refused(format!("there is no account {from:?}"));
        };
        let Some(paid) = self.accounts.get(to).copied() else {
            return refused(format!("there is no account {to:?}"));
        };
        if from == to {
            return refused("an account cannot pay itself".to_owned());
        }
        let Some(left) = paying.checked_sub(amount) else {
            return refused(format!("{from:?} has {paying}, not {amount}"));
        };
        let Some(sum) = paid.checked_add(amount) else {
            return refused(format!("{to:?} cannot hold more than {}", u64::MAX));
        };
        self.accounts.insert(from.to_owned(), left);
        self.accounts.insert(to.to_owned(), sum);
        Reply::Done { balance: left }
    }
}

fn refused(reason: String) -> Reply {
    Reply::Refused { reason }
}

/// The name of the one file in a snapshot.
const SNAPSHOT_FILE: &str = "books";

/// The bank. In memory, rebuilt from snapshot and log at every start: the engine's log is its disk,
/// and the engine knows how far the log has been applied. So most methods keep their defaults.
#[derive(Debug, Default)]
pub(crate) struct Bank {
    books: RwLock<Books>,
}

impl Bank {
    /// The sum of all balances.
    pub(crate) fn total(&self) -> u64 {
        self.books().accounts.values().sum()
    }

    fn books(&self) -> RwLockReadGuard<'_, Books> {
        self.books.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn books_mut(&self) -> RwLockWriteGuard<'_, Books> {
        self.books.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(path: &Path) -> Result<Books> {
        Ok(postcard::from_bytes(&fs::read(path.join(SNAPSHOT_FILE))?)?)
    }
}

#[async_trait]
impl StateMachine for Bank {
    /// The balance of an account, as a decimal number.
    fn get(&self, key: &[u8]) -> Result<Option<bytes::Bytes>> {
        let account = std::str::from_utf8(key)?;
        Ok(self.books().accounts.get(account).map(|balance| balance.to_string().into()))
    }

    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        // Everything that may fail comes before the lock, so the chunk is applied in place as a
        // whole. Readers wait for the lock and never see part of it.
        let decode = |entry: &Entry| postcard::from_bytes::<Command>(&entry.data);
        let commands: Vec<_> = chunk.iter().map(decode).collect();
        let mut replies = Vec::with_capacity(chunk.len());
        {
            let mut books = self.books_mut();
            for (entry, command) in chunk.iter().zip(commands) {
                let reply = match command {
                    Ok(command) => books.execute(command),
                    // A client that may propose must not be able to stop a node.
                    Err(error) => refused(format!("not a command: {error}")),
                };
                replies.push((entry, reply));
            }
        }
        for (entry, reply) in replies {
            entry.reply(postcard::to_allocvec(&reply)?);
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.books().accounts.len()
    }

    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        // 1. Validate checksum
        if snapshot_checksum(&path)? != meta.checksum {
            return Err(Error::msg(format_args!(
                "the snapshot at {} has a wrong checksum",
                path.display()
            )));
        }
        // 2. Load snapshot
        let books = Self::load(&path)?;
        // 3. Atomically replace state
        *self.books_mut() = books;
        Ok(())
    }

    async fn generate_snapshot_data(&self, dir: PathBuf, _: LogId) -> Result<[u8; 32]> {
        fs::write(dir.join(SNAPSHOT_FILE), postcard::to_allocvec(&*self.books())?)?;
        Ok(snapshot_checksum(&dir)?)
    }

    async fn reset(&self) -> Result<()> {
        *self.books_mut() = Books::default();
        Ok(())
    }

    fn name(&self) -> &str {
        "d-engine-examples/bank"
    }

    /// Called before a command is proposed: bytes that are not a command never reach the log.
    fn check(&self, command: &[u8]) -> Result<()> {
        postcard::from_bytes::<Command>(command)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, command: &Command) -> (Entry, d_engine::ReplyProbe) {
        Entry::with_reply_probe(index, 1, postcard::to_allocvec(command).unwrap())
    }

    #[tokio::test]
    async fn a_transfer_that_cannot_be_paid_is_refused_and_changes_nothing() {
        let bank = Bank::default();
        let open = |account: &str| Command::Open { account: account.to_owned(), balance: 10 };
        let pay = Command::Transfer { from: "a".to_owned(), to: "b".to_owned(), amount: 11 };
        let (refused, answer) = entry(3, &pay);
        let chunk = vec![entry(1, &open("a")).0, entry(2, &open("b")).0, refused];
        bank.apply_chunk(chunk).await.unwrap();
        let reply: Reply = postcard::from_bytes(&answer.take().unwrap()).unwrap();
        assert!(matches!(reply, Reply::Refused { .. }));
        assert_eq!(bank.total(), 20);
        assert_eq!(bank.get(b"a").unwrap().unwrap(), "10");
    }

    #[tokio::test]
    async fn a_snapshot_brings_the_books_back() {
        let (bank, other) = (Bank::default(), Bank::default());
        let open = Command::Open { account: "a".to_owned(), balance: 10 };
        bank.apply_chunk(vec![entry(1, &open).0]).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let at = LogId::of(1, 1);
        let checksum = bank.generate_snapshot_data(dir.path().to_owned(), at).await.unwrap();
        let wrong = SnapshotMetadata::new(at, [0; 32]);
        assert!(other.apply_snapshot_from_file(&wrong, dir.path().to_owned()).await.is_err());
        assert_eq!(other.total(), 0);
        let meta = SnapshotMetadata::new(at, checksum);
        other.apply_snapshot_from_file(&meta, dir.path().to_owned()).await.unwrap();
        assert_eq!(other.total(), 10);
    }
}

/// Every rule of the contract, each as a test.
#[cfg(test)]
mod contract {
    use d_engine::testing::{StateMachineCase, state_machine_suite};

    use super::*;

    fn command(n: u64) -> Vec<u8> {
        let command = if n <= 2 || n % 2 == 1 {
            Command::Open { account: format!("account-{n}"), balance: 1_000 + n }
        } else {
            let (from, to) = (format!("account-{}", n - 1), "account-1".to_owned());
            Command::Transfer { from, to, amount: n }
        };
        postcard::to_allocvec(&command).unwrap()
    }

    state_machine_suite!(
        StateMachineCase::new(|_dir| Bank::default())
            .commands(command)
            .contents(|bank| postcard::to_allocvec(&bank.books().accounts).unwrap())
    );
}
