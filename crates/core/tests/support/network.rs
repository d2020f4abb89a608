//! Several cores over a network and disks that advance only on request. Everything that happens is
//! recorded, one line per effect; the scenario files in `testdata/` are such transcripts.

mod transcript;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use d_engine_core::{
    AppendPlan, Appended, Configuration, CoreConfig, Effects, EntryKind, EntryMeta, HardState,
    Initial, InitialLog, Input, Instant, Message, Now, PersistId, PersistRequest, RaftCore,
    RoleKind,
};

pub(crate) use self::transcript::shown;
use self::transcript::{described, letter_name, role_of};
use super::{cluster, entries, n, t};

/// The durable state of a node, and the writes that are in flight to it.
#[derive(Default)]
struct Disk {
    hard_state: HardState,
    log: Vec<EntryMeta>,
    queue: VecDeque<Write>,
}

struct Write {
    id: PersistId,
    hard_state: Option<HardState>,
    /// How many entries are kept before the new ones; `None` if the write has no entries.
    kept: Option<usize>,
    entries: Vec<EntryMeta>,
}

impl Disk {
    /// Completes the first `count` queued writes and returns the last one's id.
    fn sync(&mut self, count: usize) -> Option<PersistId> {
        let mut last = None;
        for write in self.queue.drain(..count.min(self.queue.len())) {
            self.hard_state = write.hard_state.unwrap_or(self.hard_state);
            if let Some(kept) = write.kept {
                self.log.truncate(kept);
                self.log.extend(write.entries);
            }
            last = Some(write.id);
        }
        last
    }
}

/// A node with its disk; `core` is empty while it is down.
pub(crate) struct Station {
    pub(crate) core: Option<RaftCore>,
    /// The configuration before the first entry; that of nobody at a node that joins.
    first: Configuration,
    log: Vec<EntryMeta>,
    disk: Disk,
    starts: u64,
}

struct Letter {
    from: u64,
    to: u64,
    message: Message,
}

/// Selects letters by sender and receiver; `None` selects all.
pub(crate) type Link = (Option<u64>, Option<u64>);

/// The cluster and all messages in flight.
pub(crate) struct Network {
    configuration: Configuration,
    pub(crate) stations: BTreeMap<u64, Station>,
    on_the_way: VecDeque<Letter>,
    set_aside: VecDeque<Letter>,
    cut: BTreeSet<(u64, u64)>,
    now: Instant,
    /// The nodes whose writes complete only on request.
    pub(crate) slow_disks: BTreeSet<u64>,
    pub(crate) transcript: Vec<String>,
    /// Nothing is recorded.
    pub(crate) silent: bool,
    /// The settings of every node that starts from now on.
    pub(crate) config: CoreConfig,
}

impl Network {
    /// Creates nodes 1 to `voters` without any history.
    pub(crate) fn new(voters: u64) -> Self {
        let mut network = Self {
            configuration: cluster(voters, 0),
            stations: BTreeMap::new(),
            on_the_way: VecDeque::new(),
            set_aside: VecDeque::new(),
            cut: BTreeSet::new(),
            now: Instant::from_nanos(1_000_000_000),
            slow_disks: BTreeSet::new(),
            transcript: Vec::new(),
            silent: false,
            config: CoreConfig::default(),
        };
        for node in 1..=voters {
            network.begin(node, 0, &[]);
        }
        network
    }

    /// The nodes that start from now on with [`Network::begin`] know nodes 1 to `voters`.
    pub(crate) fn set_voters(&mut self, voters: u64) {
        self.configuration = cluster(voters, 0);
    }

    /// Starts `node` without a history and without members; a leader may add it.
    pub(crate) fn begin_empty(&mut self, node: u64) {
        let first = Configuration::default();
        let (core, log, disk) = (None, Vec::new(), Disk::default());
        self.stations.insert(node, Station { core, first, log, disk, starts: 0 });
        self.restart(node);
    }

    /// Starts `node` with this term and this log on its disk.
    pub(crate) fn begin(&mut self, node: u64, term: u64, log: &[u64]) {
        let stickiness = CoreConfig::default().election_timeout_min;
        let hard_state = HardState { term: t(term), stickiness, ..HardState::default() };
        let disk = Disk { hard_state, log: entries(log), ..Disk::default() };
        let (first, log) = (self.configuration.clone(), Vec::new());
        self.stations.insert(node, Station { core: None, first, log, disk, starts: 0 });
        self.restart(node);
    }

    /// Starts `node` from its disk.
    pub(crate) fn restart(&mut self, node: u64) {
        let Some(station) = self.stations.get_mut(&node) else { return };
        station.starts += 1;
        station.log.clone_from(&station.disk.log);
        station.core = Some(RaftCore::new(Initial {
            node: n(node),
            config: self.config,
            hard_state: station.disk.hard_state,
            log: InitialLog {
                configuration: station.first.clone(),
                entries: station.disk.log.clone(),
                ..InitialLog::default()
            },
            seed: node * 1_000 + station.starts,
            now: self.now,
            accepts_clock: false,
            promised: d_engine_core::LogId::ZERO,
            command_version_max: 0,
        }));
    }

    /// Stops `node`; writes that are not complete are lost.
    pub(crate) fn crash(&mut self, node: u64) {
        if let Some(station) = self.stations.get_mut(&node) {
            station.core = None;
            station.disk.queue.clear();
        }
    }

    /// Lets time pass until the next deadline of `node`, and reports the deadline to it.
    pub(crate) fn timeout(&mut self, node: u64) {
        let deadline = self.core(node).and_then(RaftCore::next_deadline);
        self.now = self.now.max(deadline.unwrap_or(self.now));
        self.step(node, "timeout", Input::Deadline);
    }

    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    pub(crate) fn wait(&mut self, millis: u64) {
        self.now = self.now.plus(Duration::from_millis(millis));
    }

    /// Messages between the two are lost from now on.
    pub(crate) fn cut(&mut self, one: u64, other: u64) {
        self.cut.extend([(one, other), (other, one)]);
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    /// Delivers all messages, and those that result, until none is in flight.
    pub(crate) fn deliver_all(&mut self) {
        for _ in 0..10_000 {
            let Some(letter) = self.on_the_way.pop_front() else { return };
            self.deliver_letter(letter);
        }
        panic!("the network does not become idle");
    }

    /// Delivers the messages in flight over `link`, but not those that result.
    pub(crate) fn deliver(&mut self, link: Link) {
        for letter in self.take(link) {
            self.deliver_letter(letter);
        }
    }

    pub(crate) fn drop_letters(&mut self, link: Link) {
        for letter in self.take(link) {
            self.note(format!("{} dropped", letter_name(&letter)));
        }
    }

    /// Takes the messages in flight over `link` off the network; `put_back` returns them.
    pub(crate) fn set_aside(&mut self, link: Link) {
        for letter in self.take(link) {
            self.note(format!("{} set aside", letter_name(&letter)));
            self.set_aside.push_back(letter);
        }
    }

    pub(crate) fn put_back(&mut self) {
        let letters = std::mem::take(&mut self.set_aside);
        self.on_the_way.extend(letters);
    }

    /// How many messages are in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.on_the_way.len()
    }

    /// Takes the message at this place in flight: delivers it, and keeps a copy in flight if it is
    /// duplicated.
    pub(crate) fn deliver_one(&mut self, place: usize, duplicated: bool) -> Option<u64> {
        let letter = self.on_the_way.remove(place)?;
        let to = letter.to;
        if duplicated {
            let message = letter.message.clone();
            self.on_the_way.push_back(Letter { from: letter.from, to, message });
        }
        self.deliver_letter(letter);
        Some(to)
    }

    pub(crate) fn drop_one(&mut self, place: usize) {
        self.on_the_way.remove(place);
    }

    /// The entries of `node`, persisted or not.
    pub(crate) fn log_of(&self, node: u64) -> &[EntryMeta] {
        self.stations.get(&node).map_or(&[], |station| &station.log)
    }

    /// How many writes of `node` are in flight.
    pub(crate) fn writes_of(&self, node: u64) -> usize {
        self.stations.get(&node).map_or(0, |station| station.disk.queue.len())
    }

    /// Completes the first `count` writes of `node`.
    pub(crate) fn persist(&mut self, node: u64, count: usize) {
        let Some(station) = self.stations.get_mut(&node) else { return };
        if let Some(id) = station.disk.sync(count) {
            self.step(node, &format!("write #{id} is complete"), Input::Persisted(id));
        }
    }

    pub(crate) fn core(&self, node: u64) -> Option<&RaftCore> {
        self.stations.get(&node).and_then(|station| station.core.as_ref())
    }

    /// The nodes that believe they lead.
    pub(crate) fn leaders(&self) -> Vec<u64> {
        let leads =
            |node: &u64| self.core(*node).is_some_and(|core| core.role() == RoleKind::Leader);
        self.stations.keys().copied().filter(leads).collect()
    }

    /// One line for `node`: role, hard state, log and watermarks.
    pub(crate) fn status_of(&self, node: u64) -> String {
        let Some(core) = self.core(node) else { return format!("{node}: down") };
        let log = core.log();
        let terms: Vec<String> = (1..=log.last.index.get())
            .filter_map(|index| core.term_at(super::i(index)))
            .map(|term| term.to_string())
            .collect();
        let watermarks = format!("stored {} committed {}", log.persisted, log.committed);
        format!("{node}: {}; log [{}] {watermarks}", role_of(core), terms.join(" "))
    }

    /// One line for `node`: the configuration in force.
    pub(crate) fn configuration_of(&self, node: u64) -> String {
        let Some(core) = self.core(node) else { return format!("{node}: down") };
        let (entry, committed) = core.configuration_entry();
        let is = if committed { "committed" } else { "not committed" };
        format!("{node}: {} of {entry:?}, {is}", shown(core.configuration()))
    }

    pub(crate) fn note(&mut self, line: String) {
        if !self.silent {
            self.transcript.push(line);
        }
    }

    /// Passes `input` to `node`, executes the effects, and records everything.
    pub(crate) fn step(&mut self, node: u64, what: &str, input: Input) {
        let Some(station) = self.stations.get_mut(&node) else { return };
        let Some(core) = &mut station.core else {
            self.note(format!("{what}: node {node} is down"));
            return;
        };
        let received = match &input {
            Input::Message { message: Message::Append { entries, .. }, .. } => entries.clone(),
            _ => Vec::new(),
        };
        let mut out = Effects::default();
        let now = Now { monotonic: self.now, wall_ms: 0 };
        let result = core.step(now, input, &mut out);
        let mut lines = vec![format!("{node}: {what}")];
        if let Err(rejected) = result {
            lines.push(format!("  rejected: {rejected}"));
        }
        if !self.silent {
            lines.extend(described(&out, core));
        }
        if let Some(index) = out.apply_to {
            let mut nothing = Effects::default();
            core.step(now, Input::Applied(index), &mut nothing).unwrap();
        }
        let in_force = core.configuration().clone();
        if let Some(order) = out.persist {
            station.order(order, &received, &in_force);
        }
        for plan in out.appends {
            let message = station.fill(plan);
            self.on_the_way.push_back(Letter { from: node, to: plan.to.get(), message });
        }
        for send in out.messages {
            self.on_the_way.push_back(Letter {
                from: node,
                to: send.to.get(),
                message: send.message.received(),
            });
        }
        if !self.silent {
            self.transcript.extend(lines);
        }
        if !self.slow_disks.contains(&node) {
            self.persist(node, usize::MAX);
        }
    }

    fn deliver_letter(&mut self, letter: Letter) {
        let name = letter_name(&letter);
        if self.cut.contains(&(letter.from, letter.to)) {
            self.note(format!("{name} lost"));
            return;
        }
        let from = n(letter.from);
        self.step(letter.to, &name, Input::Message { from, message: letter.message });
    }

    fn take(&mut self, (from, to): Link) -> Vec<Letter> {
        let (taken, kept) =
            std::mem::take(&mut self.on_the_way).into_iter().partition(|letter: &Letter| {
                from.is_none_or(|from| from == letter.from) && to.is_none_or(|to| to == letter.to)
            });
        self.on_the_way = kept;
        taken.into_iter().collect::<VecDeque<Letter>>().into()
    }
}

impl Station {
    /// Adds the entries to the log in memory and queues the write for the disk.
    fn order(&mut self, order: PersistRequest, received: &[EntryMeta], in_force: &Configuration) {
        let (kept, entries) = match order.appended {
            Appended::Nothing => (None, Vec::new()),
            Appended::Created { first, count, kind, time_ms } => {
                let configuration =
                    (kind == EntryKind::Membership).then(|| Box::new(in_force.clone()));
                let of_term = super::entry(first.term.get());
                let entry = EntryMeta { kind, time_ms, configuration, ..of_term };
                (Some(first.index), vec![entry; usize::try_from(count).unwrap()])
            }
            Appended::Received { skip, first } => (Some(first), received[skip..].to_vec()),
            Appended::Snapshot { .. } => panic!("the scenarios send no snapshots"),
        };
        let kept = kept.map(|first| usize::try_from(first.get() - 1).unwrap());
        if let Some(kept) = kept {
            self.log.truncate(kept);
            self.log.extend(entries.iter().cloned());
        }
        self.disk.queue.push_back(Write {
            id: order.id,
            hard_state: order.hard_state,
            kept,
            entries,
        });
    }

    fn fill(&self, plan: AppendPlan) -> Message {
        let range = usize::try_from(plan.prev.index.get()).unwrap()
            ..usize::try_from(plan.last.index.get()).unwrap();
        let entries = self.log[range].to_vec();
        Message::Append { term: plan.term, prev: plan.prev, commit: plan.commit, entries }
    }
}
