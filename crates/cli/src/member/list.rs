//! The members as a table or as JSON, and how many of the voters may fail.

use std::time::Duration;

use d_engine_client::{Client, ClientError, Invitation, Member, MemberRole, Members};
use serde::Serialize;

use crate::args::MemberListArgs;
use crate::exit::{Failure, note, say};
use crate::json::hex;
use crate::status::ask_all;

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
    loop {
        let report = match watch.next().await {
            Ok(_) => Report::of(&client).await,
            Err(error) => Err(error),
        };
        match report {
            Ok(report) => report.print(args.json)?,
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
    voters: usize,
    answering: usize,
    needed: usize,
    members: Vec<Row>,
    /// Which nodes may join, and those that are announced and have not joined.
    admission: &'static str,
    invited: Vec<Invited>,
}

/// A node that is to join.
#[derive(Serialize, Debug)]
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
}

impl Report {
    /// Asks the leader, or without one every member.
    async fn of(client: &Client) -> Result<Self, ClientError> {
        let mut members = client.members().await?;
        let leader = members.leader.and_then(|leader| members.get(leader));
        let address = leader.and_then(|leader| leader.client_addr.clone());
        if members.leader != Some(members.node)
            && let Some(address) = address
            // It may have lost the leadership, or be out of reach for this client.
            && let Ok(by_leader) = client.members_at(&address).await
        {
            members = by_leader;
        }
        let mut rows: Vec<Row> = members.list.iter().map(|it| Row::new(it, &members)).collect();
        if members.leader != Some(members.node) {
            let addresses = rows.iter().filter_map(|row| row.client_addr.clone()).collect();
            let answers = ask_all(client, addresses).await;
            for row in &mut rows {
                let answer = row.client_addr.as_ref().and_then(|address| answers.get(address));
                row.asked(answer.map(|answer| answer.as_ref().err().cloned()));
            }
        }
        let voters = rows.iter().filter(|row| row.votes).count();
        Ok(Self {
            cluster_id: hex(&members.cluster_id),
            configuration: members.config.to_string(),
            committed: members.is_committed,
            leader: members.leader,
            voters,
            answering: rows.iter().filter(|row| row.votes && row.answers).count(),
            needed: voters / 2 + 1,
            members: rows,
            admission: members.admission.as_str(),
            invited: members.invitations.into_iter().map(Invited::from).collect(),
        })
    }

    /// What matters most, in one line.
    fn head(&self) -> String {
        let Self { cluster_id, configuration, voters, answering, needed, .. } = self;
        let answer = if *answering == 1 { "answers" } else { "answer" };
        if self.leader.is_none() {
            return format!(
                "no leader: {answering} of {voters} voters {answer} and {needed} are needed; start \
                 the others, and check the reason that `d-engine status` shows"
            );
        }
        let committed = if self.committed { "committed" } else { "not committed yet" };
        let voting = if *voters == 1 { "1 voter".to_owned() } else { format!("{voters} voters") };
        let may_fail = match answering.checked_sub(*needed) {
            None => "nothing can be committed until more of them answer".to_owned(),
            Some(0) => "no further voter may fail".to_owned(),
            Some(1) => "1 further voter may fail".to_owned(),
            Some(spare) => format!("{spare} further voters may fail"),
        };
        format!(
            "cluster {cluster_id}, configuration {configuration}, {committed}; {voting}, \
             {answering} of them {answer} and {needed} {}: {may_fail}",
            if *needed == 1 { "is needed" } else { "are needed" }
        )
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

impl From<Invitation> for Invited {
    fn from(Invitation { peer_addr, replaces }: Invitation) -> Self {
        Self { peer_addr, replaces }
    }
}

const HEAD: [&str; 5] = ["NODE", "ROLE", "PEER", "CLIENT", "STATE"];

impl Row {
    fn new(member: &Member, members: &Members) -> Self {
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
            state: if leads { "leader".to_owned() } else { state(member, answers) },
            votes: member.role.votes(),
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
fn state(member: &Member, answers: bool) -> String {
    let silent = |ago: u64| format!("silent for {}", words(Duration::from_millis(ago)));
    let lags = |lag: u64| format!("lags by {lag} entries");
    let state = match (member.heard_ms_ago, member.lag) {
        (Some(ago), _) if !answers && member.role == MemberRole::Voter => format!(
            "{}; to replace it, start a node with `replaces = {}`",
            silent(ago),
            member.node
        ),
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
