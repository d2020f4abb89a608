//! The order of the apply worker's work, and who is answered by which snapshot.
#![allow(clippy::unwrap_used, clippy::panic)]

mod recording;

use std::sync::{Arc, Mutex};

use d_engine_replica::{
    AfterEntries, ApplyJob, ApplySource, ApplyStep, ApplySteps, ApplyWork, Never, SnapshotCause,
    SnapshotPolicy, SnapshotRequestError, SnapshotTask, StopReason,
};
use d_engine_storage::snapshot::{FullSpeed, SnapshotInfo};
use recording::node::{Node, leader_with_snapshot, now, send};
use recording::{Ground, Manner, Recording};

/// Answers to requests for snapshots, in their order: the name of the caller, and the last included
/// index or the refusal.
type Answers = Arc<Mutex<Vec<(u64, Result<u64, SnapshotRequestError>)>>>;

/// Executes the steps of a node, as its apply thread does.
struct Driver {
    node: Node,
    steps: ApplySteps,
    building: Option<SnapshotTask>,
    answers: Answers,
    /// Jobs that install a snapshot wait for disk space this many times.
    lacks_space: u32,
    first_waits: u32,
}

impl Driver {
    fn new(policy: impl SnapshotPolicy) -> Self {
        Self::of(Node::start(Ground::new(), Recording::default(), policy).unwrap())
    }

    fn of(node: Node) -> Self {
        Self {
            node,
            steps: ApplySteps::default(),
            building: None,
            answers: Answers::default(),
            lacks_space: 0,
            first_waits: 0,
        }
    }

    /// A job with the commands at these indexes, which are persisted.
    fn job(&mut self, first: u64, last: u64) -> ApplyJob {
        let source = ApplySource::Entries(self.node.store(first, last));
        ApplyJob { source, responders: Vec::new(), skip: None }
    }

    /// A batch with one job for each index.
    fn jobs(&mut self, indexes: std::ops::RangeInclusive<u64>) -> ApplyWork {
        let jobs = indexes.map(|index| self.job(index, index)).collect();
        batch(|work| work.jobs = jobs)
    }

    /// Adds the request of a caller with this name.
    fn request(&self, work: &mut ApplyWork, caller: u64) {
        let answers = self.answers.clone();
        work.request_snapshot(Box::new(move |answer| {
            let answer = answer.map(|info| info.last_included().index.get());
            answers.lock().unwrap().push((caller, answer));
        }));
    }

    fn request_alone(&mut self, caller: u64) -> Vec<String> {
        let mut work = ApplyWork::default();
        self.request(&mut work, caller);
        self.run(work)
    }

    fn answers(&self) -> Vec<(u64, Result<u64, SnapshotRequestError>)> {
        std::mem::take(&mut *self.answers.lock().unwrap())
    }

    /// Builds the snapshot that was begun.
    fn build(&mut self) -> ApplyWork {
        let built = self.building.take().unwrap().build(&self.node.ground.store, &mut FullSpeed);
        ended(built)
    }

    fn run(&mut self, work: ApplyWork) -> Vec<String> {
        self.steps.start(work);
        self.go_on()
    }

    /// Executes steps until there is none, and names them.
    fn go_on(&mut self) -> Vec<String> {
        let mut done = Vec::new();
        loop {
            match self.steps.next(&self.node.worker) {
                ApplyStep::SaveHardState => done.push("save".to_owned()),
                ApplyStep::Prune => done.push("prune".to_owned()),
                ApplyStep::EndSnapshot(built) => {
                    done.push("end".to_owned());
                    self.steps.end_snapshot(&mut self.node.worker, built).unwrap();
                }
                ApplyStep::BeginSnapshot(cause) => {
                    let begun = now(self.node.worker.begin_snapshot(cause));
                    self.steps.snapshot_begun(&self.node.worker, cause, &begun);
                    let task = begun.ok().flatten();
                    let is_begun = if task.is_some() { "begun" } else { "not begun" };
                    let cause = match cause {
                        SnapshotCause::Policy => "policy",
                        SnapshotCause::Requested => "request",
                    };
                    done.push(format!("{cause}: {is_begun}"));
                    self.building = task.or(self.building.take());
                }
                ApplyStep::Apply(job) if self.lacks_space > 0 => {
                    self.lacks_space -= 1;
                    self.first_waits += u32::from(self.steps.postpone(job));
                    done.push("wait for space".to_owned());
                    return done;
                }
                ApplyStep::Apply(job) => {
                    done.push(match &job.source {
                        ApplySource::Entries(entries) => format!("apply {}", entries[0].id.index),
                        other => format!("apply {other:?}"),
                    });
                    now(self.node.worker.run(job)).unwrap();
                }
                ApplyStep::Wait => return done,
                ApplyStep::Close => {
                    done.push("close".to_owned());
                    return done;
                }
            }
        }
    }
}

fn batch(fill: impl FnOnce(&mut ApplyWork)) -> ApplyWork {
    let mut work = ApplyWork::default();
    fill(&mut work);
    work
}

fn ended(built: Result<SnapshotInfo, StopReason>) -> ApplyWork {
    batch(|work| work.built = Some(built))
}

#[test]
fn a_batch_is_worked_off_in_this_order_and_a_snapshot_may_begin_between_two_jobs() {
    let mut driver = Driver::new(AfterEntries(2));
    let work = driver.jobs(1..=3);
    let done = driver.run(work);
    let begun = ["apply 1", "policy: not begun", "apply 2", "policy: begun"];
    assert_eq!(done, [&begun[..], &["apply 3", "policy: not begun"]].concat());
    // The snapshot is built, and in the same batch come a hard state, two jobs and a request.
    let mut work = driver.build();
    work.hard_state_saved = true;
    work.jobs = driver.jobs(4..=5).jobs;
    driver.request(&mut work, 1);
    let done = driver.run(work);
    let order = ["save", "end", "prune", "policy: not begun", "apply 4", "policy: begun"];
    let rest = ["apply 5", "policy: not begun", "request: not begun"];
    assert_eq!(done, [&order[..], &rest].concat());
    assert_eq!(driver.answers(), [], "the request came after entry 5");
}

/// Enough may be applied while a snapshot is built, and no further entry may come.
#[test]
fn at_the_end_of_a_snapshot_the_policy_is_asked_again() {
    let mut driver = Driver::new(AfterEntries(2));
    let work = driver.jobs(1..=4);
    driver.run(work);
    let work = driver.build();
    assert_eq!(driver.run(work), ["end", "prune", "policy: begun"]);
}

#[test]
fn a_snapshot_that_failed_prunes_nothing_and_refuses_its_callers() {
    let mut driver = Driver::new(Never);
    let mut work = driver.jobs(1..=1);
    driver.request(&mut work, 1);
    assert_eq!(driver.run(work), ["apply 1", "policy: not begun", "request: begun"]);
    let done = driver.run(ended(Err(StopReason::new("a full disk"))));
    assert_eq!(done, ["end", "policy: not begun"]);
    let reason = StopReason::new("a full disk");
    assert_eq!(driver.answers(), [(1, Err(SnapshotRequestError::Failed { reason }))]);
}

/// What was acknowledged before the call is in the snapshot, also if one was begun earlier.
#[test]
fn a_caller_gets_a_snapshot_that_includes_everything_applied_before_its_request() {
    let mut driver = Driver::new(Never);
    let mut work = driver.jobs(1..=1);
    driver.request(&mut work, 1);
    driver.run(work);
    assert_eq!(driver.request_alone(2), ["request: not begun"], "one is being built");
    let mut work = driver.jobs(2..=2);
    driver.request(&mut work, 3);
    driver.run(work);
    assert_eq!(driver.answers(), []);
    let work = driver.build();
    assert_eq!(driver.run(work), ["end", "prune", "request: begun", "request: not begun"]);
    assert_eq!(driver.answers(), [(1, Ok(1)), (2, Ok(1))]);
    let work = driver.build();
    assert_eq!(driver.run(work), ["end", "prune", "policy: not begun"]);
    assert_eq!(driver.answers(), [(3, Ok(2))]);
}

#[test]
fn if_nothing_was_applied_since_a_caller_gets_the_snapshot_that_exists() {
    let mut driver = Driver::new(Never);
    assert_eq!(driver.request_alone(1), ["request: not begun"]);
    let answers = driver.answers();
    let [(1, Err(SnapshotRequestError::Failed { reason }))] = &answers[..] else {
        panic!("{answers:?}");
    };
    assert!(reason.to_string().contains("nothing was applied yet"), "{reason}");
    let work = driver.jobs(1..=2);
    driver.run(work);
    assert_eq!(driver.request_alone(2), ["request: begun"]);
    let work = driver.build();
    driver.run(work);
    assert_eq!(driver.request_alone(3), Vec::<String>::new());
    assert_eq!(driver.answers(), [(2, Ok(2)), (3, Ok(2))]);
    // Its file was removed by hand.
    std::fs::remove_file(&driver.node.ground.store.list()[0].path).unwrap();
    assert_eq!(driver.request_alone(4), ["request: begun"]);
}

#[test]
fn a_request_beyond_the_bound_is_refused_at_once() {
    let mut driver = Driver::new(Never);
    let work = driver.jobs(1..=1);
    driver.run(work);
    let mut work = ApplyWork::default();
    (0..65).for_each(|caller| driver.request(&mut work, caller));
    assert_eq!(driver.answers(), [(64, Err(SnapshotRequestError::Busy))], "in one batch");
    driver.run(work);
    driver.request_alone(65);
    assert_eq!(driver.answers(), [(65, Err(SnapshotRequestError::Busy))], "over all batches");
    let work = driver.build();
    driver.run(work);
    assert_eq!(driver.answers().len(), 64);
}

/// Damage in the log: the policy has no say.
#[test]
fn a_snapshot_that_the_replica_requires_is_begun_without_a_caller_and_against_the_policy() {
    let mut driver = Driver::new(Never);
    let mut work = driver.jobs(1..=1);
    work.snapshot_due = true;
    assert_eq!(driver.run(work), ["apply 1", "policy: not begun", "request: begun"]);
}

#[test]
fn the_last_batch_is_carried_out_without_a_snapshot_and_its_callers_are_dropped() {
    let mut driver = Driver::new(AfterEntries(1));
    let work = driver.jobs(1..=2);
    driver.steps.start(work);
    let ApplyStep::Apply(first) = driver.steps.next(&driver.node.worker) else {
        panic!("the first job is to be applied");
    };
    now(driver.node.worker.run(first)).unwrap();
    let mut work = driver.jobs(3..=3);
    work.snapshot_due = true;
    driver.request(&mut work, 1);
    driver.steps.start_last(work);
    assert_eq!(driver.go_on(), ["apply 2", "apply 3", "close"]);
    assert_eq!(driver.answers(), []);
    assert_eq!(Arc::strong_count(&driver.answers), 1, "the caller's channel is closed");
}

/// A machine in an unknown state is not called.
#[test]
fn a_halted_machine_is_not_informed_of_a_hard_state() {
    let machine = Recording::with(Manner { chokes_on: Some(2), ..Manner::default() });
    let mut driver = Driver::of(Node::start(Ground::new(), machine, Never).unwrap());
    let work = driver.jobs(1..=1);
    driver.run(work);
    let saved = || batch(|work| work.hard_state_saved = true);
    assert_eq!(driver.run(saved()), ["save"]);
    let work = driver.jobs(2..=2);
    driver.run(work);
    assert!(driver.node.worker.stop().is_some());
    assert_eq!(driver.run(saved()), Vec::<String>::new());
}

#[test]
fn an_install_that_waits_for_space_is_tried_again_before_anything_else_and_then_prunes() {
    let (leader, received) = leader_with_snapshot(9);
    let mut driver = Driver::new(AfterEntries(1));
    send(&leader, &received, &driver.node.ground.store);
    let install = || ApplyJob {
        source: ApplySource::Snapshot(received.last_included()),
        responders: Vec::new(),
        skip: None,
    };
    driver.lacks_space = 2;
    let work = batch(|work| work.jobs.push_back(install()));
    assert_eq!(driver.run(work), ["wait for space"]);
    assert_eq!(driver.go_on(), ["wait for space"]);
    assert_eq!(driver.first_waits, 1, "the operator is warned once");
    let done = driver.go_on();
    assert!(done[0].starts_with("apply Snapshot"), "{done:?}");
    assert_eq!(done[1..], ["prune", "policy: not begun"]);
    assert_eq!(driver.node.machine.numbers().len(), 9);
    // A later one waits for the first time again.
    driver.lacks_space = 1;
    let work = batch(|work| work.jobs.push_back(install()));
    assert_eq!(driver.run(work), ["wait for space"]);
    assert_eq!(driver.first_waits, 2);
    driver.steps.drop_jobs();
    assert_eq!(driver.go_on(), ["close"]);
}
