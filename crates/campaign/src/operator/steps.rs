//! Executes the steps of a change. No step waits: it is done, or is tried again in the next turn.

use std::collections::BTreeSet;
use std::time::Duration;

use d_engine_client::MemberRole;

use super::Operator;
use super::book::Entry;
use super::call::{Answer, Call};
use super::job::{Job, Step};
use crate::config::{Join, Origin};
use crate::net::{PORTS, founders};
use crate::node::Duty;
use crate::shell::Outcome;
use crate::site::Site;

/// A removed node whose machine has no fault must have ended within this time. It serves for a few
/// seconds; one that was down asks members again only every half minute once they refuse it.
const LEFT_MAX: Duration = Duration::from_secs(45);
/// A node that comes back under its old id and joins must have been refused within this time.
const REFUSED_MAX: Duration = Duration::from_secs(45);
/// How long a founder without its directory may run: it founds nothing, and asks for ever.
const RETURNS_FOR: Duration = Duration::from_secs(5);
/// The pause before a command is typed again, in milliseconds.
const AGAIN_MS: (u64, u64) = (300, 1_500);
/// The victim of a change is killed one of these times after the change begins, in milliseconds.
/// Most changes take less than half a second.
const KILLS_AFTER_MS: &[u64] = &[0, 0, 50, 100, 200, 500, 1_500];

impl Operator {
    /// Executes the steps that are possible now.
    pub(super) fn go_on(
        &mut self,
        job: &mut Job,
        site: &mut Site,
        faulty: &BTreeSet<u64>,
    ) -> Outcome<()> {
        while let Some(step) = job.steps.front().cloned() {
            let now = site.record.now();
            job.since.get_or_insert(now);
            let is_done = match &step {
                Step::Member(words) => self.member(words, job, site)?,
                Step::Votes(machine) => match site.view.said(*machine) {
                    Some(said) => {
                        let words = ["promote".to_owned(), said.node.to_string()];
                        self.member(&words, job, site)?
                    }
                    // It has been killed, and is not back yet.
                    None => job.call.is_some() && self.member(&[], job, site)?,
                },
                Step::Joined(..) => {
                    self.sets_kill(job, now);
                    self.watches(&step, site, faulty, job)?
                }
                Step::Moved(_) | Step::Left(_) | Step::Refused(_) => {
                    self.watches(&step, site, faulty, job)?
                }
                Step::Enter(..) | Step::Drop(_) | Step::Role(..) => self.notes(&step, site)?,
                _ => acts(&step, site, faulty)?,
            };
            if !is_done {
                return Ok(());
            }
            job.steps.pop_front();
            job.since = None;
        }
        Ok(())
    }
}

impl Operator {
    fn sets_kill(&mut self, job: &mut Job, now: Duration) {
        if job.victim.is_some() && job.kill_at.is_none() {
            let after = self.prng.pick(KILLS_AFTER_MS).copied().unwrap_or_default();
            job.kill_at = Some(now + Duration::from_millis(after));
        }
    }

    /// Types a `member` command, again until its goal is reached.
    fn member(&mut self, words: &[String], job: &mut Job, site: &Site) -> Outcome<bool> {
        let now = site.record.now();
        self.sets_kill(job, now);
        let Some(call) = &mut job.call else {
            if now >= job.again_at {
                let endpoints = self.endpoints(site);
                job.call = Some(Call::start(&site.binary, words, &endpoints, now)?);
            }
            return Ok(false);
        };
        if !call.is_over(now)? {
            return Ok(false);
        }
        let Some(call) = job.call.take() else { return Ok(false) };
        let words = call.words.clone();
        let (answer, said) = call.end()?;
        let reason = match answer {
            Answer::Done => {
                site.record.answer("done");
                site.record.say(&format!("operator: member {words}: {said}"));
                return Ok(true);
            }
            Answer::Again(reason) => reason,
            Answer::Strange(problem) => {
                site.record.finding(&format!("member {words}: {problem}"));
                "strange"
            }
        };
        site.record.answer(reason);
        site.record.say(&format!("operator: member {words}: again: {said}"));
        job.again_at = now + Duration::from_millis(self.prng.between(AGAIN_MS.0, AGAIN_MS.1));
        Ok(false)
    }

    /// Returns the endpoints for a command: all nodes, or one of them.
    fn endpoints(&mut self, site: &Site) -> Vec<String> {
        let all = site.view.addresses();
        let one = self.prng.pick(&all).filter(|_| self.prng.chance(300_000)).cloned();
        match one {
            Some(one) => vec![one],
            None if all.is_empty() => founders(),
            None => all,
        }
    }

    /// Whether what the step waits for is so.
    fn watches(
        &mut self,
        step: &Step,
        site: &mut Site,
        faulty: &BTreeSet<u64>,
        job: &mut Job,
    ) -> Outcome<bool> {
        let now = site.record.now();
        let leader = site.view.said_by_leader();
        match *step {
            Step::Joined(machine, is_voter) => {
                let role = if is_voter { MemberRole::Voter } else { MemberRole::Learner };
                let (Some(said), Some(leader)) = (site.view.said(machine), leader) else {
                    return Ok(false);
                };
                Ok(leader.members.iter().any(|it| it.node == said.node && it.role == role))
            }
            Step::Moved(machine) => {
                let Some(entry) = self.book.0.get(&machine) else { return Ok(true) };
                let node = site.node(machine)?;
                let (peer, client) = (node.peer_addr(), node.client_addr());
                Ok(leader.is_some_and(|leader| {
                    leader.members.iter().any(|it| {
                        it.node == entry.id
                            && it.peer_addr == peer
                            && it.client_addr.as_ref() == Some(&client)
                    })
                }))
            }
            Step::Left(machine) => {
                if site.node(machine)?.has_left() {
                    return Ok(true);
                }
                if faulty.contains(&machine) {
                    job.since = Some(now);
                }
                let waited = now.saturating_sub(job.since.unwrap_or(now));
                if waited > LEFT_MAX {
                    site.record.finding(&format!(
                        "the node on machine {machine} was removed and has not ended after \
                         {LEFT_MAX:?}"
                    ));
                }
                Ok(waited > LEFT_MAX)
            }
            Step::Refused(machine) => refused(machine, site, job),
            _ => Ok(true),
        }
    }

    /// Notes who is a member.
    fn notes(&mut self, step: &Step, site: &Site) -> Outcome<bool> {
        match *step {
            Step::Enter(machine, is_voter) => {
                let Some(said) = site.view.said(machine) else { return Ok(false) };
                let id = said.node;
                if id <= self.last_id {
                    site.record.finding(&format!("the id {id} was given again"));
                }
                self.last_id = self.last_id.max(id);
                self.book.0.insert(machine, Entry { id, is_voter });
            }
            Step::Drop(machine) => {
                self.book.0.remove(&machine);
            }
            Step::Role(machine, is_voter) => {
                if let Some(entry) = self.book.0.get_mut(&machine) {
                    entry.is_voter = is_voter;
                }
            }
            _ => {}
        }
        Ok(true)
    }
}

/// Whether a node without its directory was refused under its old id. It must never be ready.
fn refused(machine: u64, site: &mut Site, job: &Job) -> Outcome<bool> {
    let waited = site.record.now().saturating_sub(job.since.unwrap_or_default());
    if let Some(said) = site.view.said(machine).filter(|said| said.ready) {
        site.record.finding(&format!(
            "node {} on machine {machine} lost its directory, came back, and is ready",
            said.node
        ));
        return Ok(true);
    }
    let node = site.node(machine)?;
    if node.was_refused() {
        let said = node.last_lines();
        site.record.say(&format!("operator: refused as it must be: {said}"));
        return Ok(true);
    }
    if node.origin == Origin::Founds {
        return Ok(waited > RETURNS_FOR);
    }
    if waited > REFUSED_MAX {
        let said = node.last_lines();
        site.record.finding(&format!(
            "the node on machine {machine} lost its directory, came back, and was not refused \
             within {REFUSED_MAX:?}\n    {said}"
        ));
    }
    Ok(waited > REFUSED_MAX)
}

/// Does something to a machine, unless a fault keeps it from that.
fn acts(step: &Step, site: &mut Site, faulty: &BTreeSet<u64>) -> Outcome<bool> {
    let (Step::Kill(machine)
    | Step::Stop(machine)
    | Step::Wipe(machine)
    | Step::Run(machine)
    | Step::Join(machine, _)
    | Step::Return(machine, ..)
    | Step::Move(machine, ..)
    | Step::Leave(machine)
    | Step::Vacate(machine)) = step
    else {
        return Ok(true);
    };
    let machine = *machine;
    let goes_on_under_faults = matches!(step, Step::Leave(_));
    if faulty.contains(&machine) && !goes_on_under_faults {
        return Ok(false);
    }
    let node = site.node(machine)?;
    match step {
        Step::Kill(_) => {
            node.is_reserved = true;
            site.kill(machine)?;
        }
        Step::Stop(_) => {
            node.is_reserved = true;
            if let Err(problem) = node.stop() {
                site.record.finding(&problem);
            }
            site.kill(machine)?;
        }
        Step::Wipe(_) => node.wipe()?,
        Step::Run(_) => {
            node.is_reserved = false;
            site.run(machine, None)?;
        }
        Step::Join(_, join) => joins(machine, join, site)?,
        Step::Return(_, id, seeds) => {
            node.duty = Duty::Returns;
            if let Origin::Joins(join) = &mut node.origin {
                (join.id, join.seeds) = (*id, seeds.clone());
                node.configure()?;
            }
            site.run(machine, None)?;
        }
        Step::Move(_, ports, seeds) => moves(machine, *ports, seeds, site)?,
        Step::Leave(_) => {
            node.duty = Duty::Leaves;
            site.view.leaves(machine);
        }
        Step::Vacate(_) => vacates(machine, site)?,
        _ => {}
    }
    Ok(true)
}

/// Starts a new node.
fn joins(machine: u64, join: &Join, site: &mut Site) -> Outcome<()> {
    let node = site.node(machine)?;
    node.wipe()?;
    (node.duty, node.is_reserved) = (Duty::Member, false);
    node.origin = Origin::Joins(join.clone());
    node.configure()?;
    site.run(machine, None)
}

/// Leaves nothing of a node.
fn vacates(machine: u64, site: &mut Site) -> Outcome<()> {
    let node = site.node(machine)?;
    node.kill()?;
    node.wipe()?;
    (node.duty, node.ports, node.is_reserved) = (Duty::Vacant, PORTS, false);
    site.view.vacated(machine);
    Ok(())
}

/// Configures other ports. A founder finds the others by `join` from now on, and not by its list.
fn moves(machine: u64, ports: (u64, u64), seeds: &[String], site: &mut Site) -> Outcome<()> {
    let node = site.node(machine)?;
    node.ports = ports;
    if let Origin::Joins(join) = &mut node.origin {
        join.seeds = seeds.to_vec();
    } else {
        node.origin =
            Origin::Joins(crate::config::Join { seeds: seeds.to_vec(), ..Default::default() });
    }
    node.configure()
}
