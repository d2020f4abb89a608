//! The history to which a state machine's own files belong.

use d_engine_core::{ClusterId, Incarnation};

use crate::{Error, Result};

/// The history that a data directory contains. A state machine receives it before it starts, so
/// that a machine with files of its own can refuse the files of another node or another cluster.
///
/// A durable machine stores [`Binding::to_bytes`] with its data and calls [`Binding::compare`] at
/// each start.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Binding {
    /// The cluster.
    pub cluster: ClusterId,
    /// The Raft group; never 0.
    pub group: u64,
    /// The incarnation of this node's data directory, drawn at random when the directory was
    /// created.
    pub incarnation: Incarnation,
    /// Earlier identities whose history this directory continues after a recovery. Files that are
    /// bound to one of them must be rebound, in one durable step.
    pub continues: Vec<(ClusterId, Incarnation)>,
}

/// The result of [`Binding::compare`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    /// The files are already bound to this history.
    Here,
    /// The files are bound to nothing, or to a history that this one continues: store
    /// [`Binding::to_bytes`].
    Store,
}

impl Binding {
    /// Bytes of a stored binding.
    pub const BYTES: usize = 40;

    /// A binding that continues no other one.
    #[must_use]
    pub fn new(cluster: ClusterId, group: u64, incarnation: Incarnation) -> Self {
        Self { cluster, group, incarnation, continues: Vec::new() }
    }

    /// The form that a machine stores: cluster, group (little-endian), incarnation.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        encoded(self.cluster, self.group, self.incarnation)
    }

    /// Compares the binding that a machine has stored; `None` if it has stored none yet.
    ///
    /// # Errors
    /// The files belong to another history. The message names both and says what to do. Return it
    /// from [`StateMachine::bind`](crate::StateMachine::bind) or
    /// [`start`](crate::StateMachine::start).
    pub fn compare(&self, stored: Option<&[u8]>) -> Result<Bound> {
        let Some(stored) = stored else { return Ok(Bound::Store) };
        if stored == self.to_bytes() {
            return Ok(Bound::Here);
        }
        let is = |(cluster, incarnation): &(ClusterId, Incarnation)| {
            stored == encoded(*cluster, self.group, *incarnation)
        };
        if self.continues.iter().any(is) {
            return Ok(Bound::Store);
        }
        Err(Error::msg(format_args!(
            "the state machine's files belong to {}, but this data directory is {}; restore both \
             from one copy, or remove the state machine's files: its state is then rebuilt from \
             the snapshot and the log (docs/snapshots.md)",
            described(stored),
            described(&self.to_bytes())
        )))
    }
}

fn encoded(cluster: ClusterId, group: u64, incarnation: Incarnation) -> [u8; Binding::BYTES] {
    let mut bytes = [0; Binding::BYTES];
    let parts = cluster.0.into_iter().chain(group.to_le_bytes()).chain(incarnation.0);
    bytes.iter_mut().zip(parts).for_each(|(byte, part)| *byte = part);
    bytes
}

fn described(stored: &[u8]) -> String {
    let parts = stored.split_first_chunk::<16>().and_then(|(cluster, rest)| {
        let (group, incarnation) = rest.split_first_chunk::<8>()?;
        Some((
            ClusterId(*cluster),
            u64::from_le_bytes(*group),
            Incarnation(incarnation.try_into().ok()?),
        ))
    });
    match parts {
        Some((cluster, group, incarnation)) => {
            format!("cluster {cluster}, group {group}, incarnation {incarnation}")
        }
        None => {
            format!(
                "an identity that cannot be decoded ({} bytes instead of {})",
                stored.len(),
                Binding::BYTES
            )
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const OTHER: (ClusterId, Incarnation) = (ClusterId([7; 16]), Incarnation([8; 16]));

    fn binding() -> Binding {
        Binding::new(ClusterId([1; 16]), 3, Incarnation([2; 16]))
    }

    #[test]
    fn files_of_another_history_are_refused_unless_it_is_continued() {
        let here = binding();
        assert_eq!(here.compare(None).unwrap(), Bound::Store);
        assert_eq!(here.compare(Some(&here.to_bytes())).unwrap(), Bound::Here);
        let others = [
            Binding { cluster: OTHER.0, ..binding() },
            Binding { group: 4, ..binding() },
            Binding { incarnation: OTHER.1, ..binding() },
        ];
        for other in others {
            let error = here.compare(Some(&other.to_bytes())).unwrap_err().to_string();
            assert!(error.contains(&format!("incarnation {}", other.incarnation)), "{error}");
            assert!(error.contains("remove the state machine's files"), "{error}");
        }
        assert!(
            here.compare(Some(b"short")).unwrap_err().to_string().contains("5 bytes instead of 40")
        );
        let continued = Binding { continues: vec![OTHER], ..binding() };
        let before = Binding::new(OTHER.0, 3, OTHER.1);
        assert_eq!(continued.compare(Some(&before.to_bytes())).unwrap(), Bound::Store);
        let other_group = Binding::new(OTHER.0, 4, OTHER.1);
        assert!(continued.compare(Some(&other_group.to_bytes())).is_err());
    }
}
