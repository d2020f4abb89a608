//! How a replica is made from what was recovered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use d_engine_core::{Effects, Initial, Input, Instant, Now, RaftCore};
use d_engine_storage::{ConfigId, Identity, Membership, RecoveredLog};

use super::Replica;
use crate::admission::removed_by;
use crate::clients::proposals::Proposals;
use crate::clients::reads::Reads;
use crate::clients::throttle::Throttle;
use crate::convert;
use crate::health::Pauses;
use crate::health::worker_watch::WorkerWatch;
use crate::log::cache::LogCache;
use crate::log::loads::Loads;
use crate::log::unsynced::Unsynced;
use crate::members::Members;
use crate::membership_driver::MembershipDriver;
use crate::moved::Moved;
use crate::snapshots::Snapshots;
use crate::state_machine::apply_queue::ApplyQueue;
use crate::state_machine::skips::{self, Skips};
use crate::ticker::Ticker;
use crate::{LogDisk, ReplicaConfig, ReplicaError, StartPosition};

impl Replica {
    /// Creates a replica over a recovered log. `start_position` is the position of the state
    /// machine, from [`crate::StateMachineHandler::open`]. `seed` must differ between nodes and
    /// between starts.
    ///
    /// Call [`Replica::handle`] with [`crate::Event::Deadline`] right afterwards, to get the first
    /// jobs.
    ///
    /// # Errors
    /// See [`ReplicaError`].
    pub fn new(
        config: ReplicaConfig,
        identity: &Identity,
        recovered: &RecoveredLog,
        start_position: &StartPosition,
        seed: u64,
        now: Instant,
    ) -> Result<Self, ReplicaError> {
        config.core.validate()?;
        let mut members = Members::new(
            start_position.membership.as_ref().unwrap_or(&identity.initial),
            &identity.initial,
        );
        for (index, payload) in &recovered.memberships {
            let membership = Membership::decode(payload)
                .map_err(|source| ReplicaError::Membership { index: index.get(), source })?;
            members.push(*index, membership);
        }
        let mut skips = Skips::default();
        for (index, payload) in &recovered.skips {
            if let Some(target) = skips::decode(payload) {
                skips.push(*index, target);
            }
        }
        let mut core = RaftCore::new(Initial {
            node: identity.node,
            config: config.core,
            hard_state: recovered.hard_state,
            log: convert::initial_log(identity, recovered, start_position)?,
            seed,
            now,
            accepts_clock: config.accept_clock,
            promised: recovered.promised,
            command_version_max: start_position.command_version_max,
        });
        let applied = start_position.applied;
        let mut snapshots = Snapshots::default();
        snapshots.newest_has(start_position.covered_bytes);
        snapshots.covers(start_position.covered, start_position.oldest);
        let mut apply = ApplyQueue::new(applied, config.apply_jobs_max, config.apply_entries_max);
        // What the state machine contains is applied and may be purged. The core's reply says how
        // far apply may continue.
        let removed =
            removed_by(members.committed(core.log().committed), identity.node, identity.born());
        let mut effects = Effects::default();
        let start = Now { monotonic: now, wall_ms: 0 };
        core.step(start, Input::Applied(applied), &mut effects).ok();
        if let Some(index) = effects.apply_to {
            apply.allow(index);
        }
        Ok(Self {
            node: identity.node,
            cache: LogCache::new(core.log().last.index, config.cache_bytes_max),
            apply,
            core,
            effects,
            ticker: Ticker::default(),
            members,
            proposals: Proposals::default(),
            reads: Reads::default(),
            loads: Loads::default(),
            incarnations: BTreeMap::from([(identity.node, identity.incarnation)]),
            unsynced: Unsynced::default(),
            snapshots,
            throttle: Throttle::default(),
            disk: WorkerWatch::default(),
            machine: WorkerWatch::default(),
            machine_steps: (Arc::default(), 0),
            pauses: Pauses::default(),
            gave_way_at: None,
            was_short_of_room: false,
            command_version_floor: start_position.command_version_floor,
            contradiction: None,
            skips,
            membership_driver: MembershipDriver::default(),
            moved: Moved::default(),
            born: identity.born(),
            committed_members: ConfigId::default(),
            removed,
            log_disk: LogDisk::default(),
            stopped: None,
            config,
        })
    }

    /// Sets the progress counter of the state machine's worker
    /// ([`crate::StateMachineHandler::steps`]). A job during which the counter rises is slow; it
    /// does not count as a hang.
    #[must_use]
    pub fn with_machine_steps(mut self, steps: Arc<AtomicU64>) -> Self {
        self.machine_steps = (steps, 0);
        self
    }

    /// Sets the members' addresses from this node's configuration. They count as long as the log
    /// names no other ones than those at the cluster's birth.
    #[must_use]
    pub fn with_addresses(mut self, configured: &Membership) -> Self {
        self.members.use_addresses(configured);
        self
    }

    /// Sets the addresses at which this node is reached. A leader writes its own into the log.
    #[must_use]
    pub fn reached_at(mut self, peer_addr: &str, client_addr: &str) -> Self {
        self.moved.starts(self.members.logged(), self.node, peer_addr, client_addr);
        self
    }
}
