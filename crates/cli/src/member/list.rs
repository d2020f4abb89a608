//! The members as a table or as JSON, and how many of the voters may fail.

use std::collections::BTreeSet;
use std::time::Duration;

use d_engine_client::{Admission, Client, ClientError, Invitation, Member, MemberRole, Members};
use serde::Serialize;

use crate::args::MemberListArgs;
use crate::exit::{Failure, note, say, stdout_is_closed};
use crate::json::hex;
use crate::status::{Answers, ask_all};

/// How long a member is silent before it counts as one that does not answer. A leader hears from
/// each member several times a second.
const SILENT_AFTER_MS: u64 = 2_000;

pub(super) async fn list(args: &MemberListArgs) -> Result<(), Failure> {
    let client = args.cluster.client()?;
    if !args.watch {
        let report = Report::of(&client).await?;
        report.print(args.json)?;
        return match report.leader {
            Some(_) => Ok(()),
            None => Err(Failure::failed(report.head())),
        };
    }
    let mut watch = client.watch_members();
    let mut printed = None;
    loop {
        let report = match watch.next().await {
            Ok(_) => Report::of(&client).await,
            Err(error) => Err(error),
        };
        match report {
            // Two changes in short order are printed as one.
            Ok(report) if printed.as_ref() == Some(&report.essence()) => {}
            Ok(report) => {
                report.print(args.json)?;
                if report.leader.is_none() {
                    note(report.head());
                }
                if stdout_is_closed() {
                    return Ok(());
                }
                printed = Some(report.essence());
            }
            Err(
                error @ (ClientError::OtherCluster { .. }
                | ClientError::Unsupported { .. }
                | ClientError::BadEndpoint { .. }),
            ) => return Err(error.into()),
            // The watch goes on once a node answers.
            Err(error) => note(error),
        }
    }
}

/// The whole list.
#[derive(Serialize, Debug)]
struct Report {
    cluster_id: String,
    configuration: String,
    committed: bool,
    leader: Option<u64>,
    /// The number of voters, how many of them answer, and how many are needed to commit.
    #[serde(flatten)]
    quorum: Quorum,
    /// The same for the voters that follow, while the configuration is joint: both are needed.
    next: Option<Quorum>,
    members: Vec<Row>,
    /// Which nodes may join, and those that are announced and have not joined.
    admission: &'static str,
    invited: Vec<Invited>,
}

/// One set of voters.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
struct Quorum {
    voters: usize,
    answering: usize,
    needed: usize,
    #[serde(skip)]
    silent: Vec<u64>,
}

impl Quorum {
    fn of<'a>(voters: impl Iterator<Item = &'a Row>) -> Self {
        let voters: Vec<&Row> = voters.collect();
        let silent = voters.iter().filter(|row| !row.answers).map(|row| row.node);
        let silent: Vec<u64> = silent.collect();
        Self {
            voters: voters.len(),
            answering: voters.len() - silent.len(),
            needed: voters.len() / 2 + 1,
            silent,
        }
    }

    /// How many answer and are needed, as a sentence without its end.
    fn words(&self) -> String {
        let Self { voters, answering, needed, silent: _ } = self;
        let answer = if *answering == 1 { "answers" } else { "answer" };
        let are = if *needed == 1 { "is needed" } else { "are needed" };
        format!("{answering} of {voters} {answer} and {needed} {are}")
    }
}

/// What distinguishes one state of the members from the next.
#[derive(PartialEq, Eq, Debug)]
struct Essence {
    configuration: String,
    committed: bool,
    leader: Option<u64>,
    members: Vec<(u64, &'static str, String, Option<String>, bool)>,
    invited: Vec<Invited>,
    admission: &'static str,
}

/// A node that is to join.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
struct Invited {
    peer_addr: String,
    replaces: Option<u64>,
}

/// A member.
#[derive(Serialize, Debug)]
struct Row {
    node: u64,
    role: &'static str,
    replaces: Option<u64>,
    peer_addr: String,
    client_addr: Option<String>,
    heard_ms_ago: Option<u64>,
    lag: Option<u64>,
    answers: bool,
    state: String,
    #[serde(skip)]
    votes: bool,
    /// As [`Member::votes_next`].
    votes_next: bool,
}

impl Report {
    /// Asks the leader, or without one every member.
    async fn of(client: &Client) -> Result<Self, ClientError> {
        let mut members = by_leader(client, client.members().await?).await;
        let mut answers = Answers::new();
        if members.leader != Some(members.node) {
            let addresses = members.list.iter().filter_map(|it| it.client_addr.clone()).collect();
            answers = ask_all(client, addresses).await;
            // The node that was asked may be the one that is cut off.
            if members.leader.is_none()
                && let Some(address) = knows_a_leader(&answers)
                && let Ok(found) = client.members_at(&address).await
            {
                members = by_leader(client, found).await;
            }
        }
        let mut rows: Vec<Row> = members
            .list
            .iter()
            .map(|it| Row::new(it, &members, members.admission == Admission::Invited))
            .collect();
        if members.leader != Some(members.node) {
            for row in &mut rows {
                let answer = row.client_addr.as_ref().and_then(|address| answers.get(address));
                row.asked(answer.map(|answer| answer.as_ref().err().cloned()));
            }
        }
        Ok(Self {
            cluster_id: hex(&members.cluster_id),
            configuration: members.config.to_string(),
            committed: members.is_committed,
            leader: members.leader,
            quorum: Quorum::of(rows.iter().filter(|row| row.votes)),
            next: members.is_joint().then(|| Quorum::of(rows.iter().filter(|row| row.votes_next))),
            members: rows,
            admission: members.admission.as_str(),
            invited: members.invitations.into_iter().map(Invited::from).collect(),
        })
    }

    /// What matters most, in one line.
    fn head(&self) -> String {
        let Self { cluster_id, configuration, quorum, next, .. } = self;
        let joint = next.as_ref().map_or_else(String::new, |next| {
            format!(
                "; configuration {configuration} is joint, so of the voters that follow, {} too",
                next.words()
            )
        });
        if self.leader.is_none() {
            let silent: BTreeSet<u64> = [Some(quorum), next.as_ref()]
                .into_iter()
                .flatten()
                .flat_map(|it| it.silent.clone())
                .collect();
            let start = match silent.len() {
                0 => "look again in a second".to_owned(),
                _ => format!(
                    "start {}",
                    silent.iter().map(|node| format!("node {node}")).collect::<Vec<_>>().join(", ")
                ),
            };
            return format!(
                "no leader: of the voters, {}{joint}; {start}, and check the reason that `d-engine \
                 status` shows",
                quorum.words()
            );
        }
        let Quorum { voters, answering, needed, .. } = quorum;
        let committed = if self.committed { "committed" } else { "not committed yet" };
        let voting = if *voters == 1 { "1 voter".to_owned() } else { format!("{voters} voters") };
        let spare = |quorum: &Quorum| quorum.answering.checked_sub(quorum.needed);
        let may_fail = match next.iter().fold(spare(quorum), |least, next| least.min(spare(next))) {
            None => "nothing can be committed until more of them answer".to_owned(),
            Some(0) => "no further voter may fail".to_owned(),
            Some(1) => "1 further voter may fail".to_owned(),
            Some(spare) => format!("{spare} further voters may fail"),
        };
        format!(
            "cluster {cluster_id}, configuration {configuration}, {committed}; {voting}, \
             {answering} of them {} and {needed} {}{joint}: {may_fail}",
            if *answering == 1 { "answers" } else { "answer" },
            if *needed == 1 { "is needed" } else { "are needed" }
        )
    }

    fn essence(&self) -> Essence {
        let row = |row: &Row| {
            let (peer_addr, client_addr) = (row.peer_addr.clone(), row.client_addr.clone());
            (row.node, row.role, peer_addr, client_addr, row.answers)
        };
        Essence {
            configuration: self.configuration.clone(),
            committed: self.committed,
            leader: self.leader,
            members: self.members.iter().map(row).collect(),
            invited: self.invited.clone(),
            admission: self.admission,
        }
    }

    fn print(&self, json: bool) -> Result<(), Failure> {
        if json {
            let text = serde_json::to_string(self);
            say(text.map_err(|error| Failure::failed(format_args!("no JSON: {error}")))?);
            return Ok(());
        }
        if self.leader.is_some() {
            say(self.head());
        }
        let mut table = vec![HEAD.map(str::to_owned)];
        table.extend(self.members.iter().map(Row::cells));
        let width =
            |column: usize| table.iter().filter_map(|row| row.get(column)).map(String::len).max();
        let widths: Vec<usize> = (0..HEAD.len()).map(|column| width(column).unwrap_or(0)).collect();
        for row in &table {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            say(cells.join("  ").trim_end());
        }
        for Invited { peer_addr, replaces } in &self.invited {
            match replaces {
                None => say(format_args!("invited: {peer_addr}")),
                Some(old) => say(format_args!("invited: {peer_addr}, in place of node {old}")),
            }
        }
        Ok(())
    }
}

/// The members as the leader knows them, if the node that knows `members` names one that answers.
async fn by_leader(client: &Client, members: Members) -> Members {
    let leader = members.leader.and_then(|leader| members.get(leader));
    let address = leader.and_then(|leader| leader.client_addr.clone());
    match address.filter(|_| members.leader != Some(members.node)) {
        // It may have lost the leadership, or be out of reach for this client.
        Some(address) => client.members_at(&address).await.unwrap_or(members),
        None => members,
    }
}

/// The address of a node that knows a leader.
fn knows_a_leader(answers: &Answers) -> Option<String> {
    let mut answers = answers.iter();
    let knows = answers.find(|(_, answer)| answer.as_ref().is_ok_and(|it| it.leader.is_some()));
    knows.map(|(address, _)| address.clone())
}

impl From<Invitation> for Invited {
    fn from(Invitation { peer_addr, replaces }: Invitation) -> Self {
        Self { peer_addr, replaces }
    }
}

const HEAD: [&str; 5] = ["NODE", "ROLE", "PEER", "CLIENT", "STATE"];

impl Row {
    fn new(member: &Member, members: &Members, must_be_invited: bool) -> Self {
        let leads = members.leader == Some(member.node);
        let answers = leads || member.heard_ms_ago.is_some_and(|ago| ago < SILENT_AFTER_MS);
        let replaces = match member.role {
            MemberRole::Joining { replaces } => replaces,
            _ => None,
        };
        Self {
            node: member.node,
            role: member.role.as_str(),
            replaces,
            peer_addr: member.peer_addr.clone(),
            client_addr: member.client_addr.clone(),
            heard_ms_ago: member.heard_ms_ago,
            lag: member.lag,
            answers,
            state: match leads {
                true => "leader".to_owned(),
                false => state(member, answers, must_be_invited),
            },
            votes: member.role.votes(),
            votes_next: member.votes_next,
        }
    }

    /// What a member answered when it was asked directly: nothing if it has no address, otherwise
    /// why it does not answer.
    fn asked(&mut self, answer: Option<Option<String>>) {
        self.answers = matches!(answer, Some(None));
        self.state = match answer {
            Some(None) => "answers".to_owned(),
            Some(Some(reason)) => reason,
            None => "it has no client address".to_owned(),
        };
    }

    fn cells(&self) -> [String; HEAD.len()] {
        let client = self.client_addr.clone().unwrap_or_else(|| "-".to_owned());
        let role = self.role.to_owned();
        [self.node.to_string(), role, self.peer_addr.clone(), client, self.state.clone()]
    }
}

/// What the leader knows about another member, and what to do.
fn state(member: &Member, answers: bool, must_be_invited: bool) -> String {
    let silent = |ago: u64| format!("silent for {}", words(Duration::from_millis(ago)));
    let lags = |lag: u64| format!("lags by {lag} entries");
    let state = match (member.heard_ms_ago, member.lag) {
        (Some(ago), _) if !answers && member.role == MemberRole::Voter => {
            let (silent, node) = (silent(ago), member.node);
            match must_be_invited {
                true => format!(
                    "{silent}; to replace it: d-engine member replace {node} --peer HOST:PORT, and \
                     start a node there"
                ),
                false => {
                    format!("{silent}; to replace it, start a node with `replaces = {node}`")
                }
            }
        }
        (Some(ago), _) if !answers => silent(ago),
        (_, Some(lag)) => lags(lag),
        _ => "-".to_owned(),
    };
    match member.role {
        MemberRole::Joining { replaces: Some(old) } => format!("{state}; replaces node {old}"),
        _ => state,
    }
}

/// A time in its largest unit.
fn words(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{} ms", time.as_millis()),
        seconds @ 1..=119 => format!("{seconds} s"),
        seconds @ 120..=7_199 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}
