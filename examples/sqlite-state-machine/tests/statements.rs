//! Which statements are allowed, and which are refused.
#![allow(clippy::unwrap_used)]

use d_engine::{Entry, StateMachine as _};
use sqlite_state_machine::{Command, Reply, SqliteMachine, Value};

const SCHEMA: &str = "CREATE TABLE t (a INTEGER PRIMARY KEY, b)";

struct Subject {
    machine: SqliteMachine,
    next: u64,
    _dir: tempfile::TempDir,
}

impl Subject {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { machine: SqliteMachine::open(dir.path(), SCHEMA).unwrap(), next: 1, _dir: dir }
    }

    /// Applies statements as one chunk.
    async fn chunk(&mut self, statements: &[&str]) -> Vec<Reply> {
        let encoded = statements.iter().map(|sql| Command::new(*sql, []).encode().unwrap());
        let (entries, probes): (Vec<_>, Vec<_>) = encoded
            .zip(self.next..)
            .map(|(command, index)| {
                let (entry, probe) = Entry::with_reply_probe(index, 1, command);
                (entry.at_time_ms(1_700_000_000_000), probe)
            })
            .unzip();
        self.next += statements.len() as u64;
        self.machine.apply_chunk(entries).await.unwrap();
        probes.iter().map(|probe| Reply::decode(&probe.take().unwrap()).unwrap()).collect()
    }

    async fn one(&mut self, sql: &str) -> Reply {
        self.chunk(&[sql]).await.remove(0)
    }

    fn ask(&self, sql: &str) -> Reply {
        Reply::decode(&self.machine.query(&Command::new(sql, []).encode().unwrap()).unwrap())
            .unwrap()
    }
}

fn refused(reply: &Reply) -> &str {
    match reply {
        Reply::Refused { reason } => reason,
        Reply::Done { .. } => panic!("it was executed: {reply:?}"),
    }
}

fn rows(reply: Reply) -> Vec<Vec<Value>> {
    match reply {
        Reply::Done { rows, .. } => rows,
        Reply::Refused { reason } => panic!("{reason}"),
    }
}

#[tokio::test]
async fn what_differs_between_nodes_is_refused_wherever_it_stands() {
    let mut subject = Subject::new();
    for sql in [
        "INSERT INTO t VALUES (random(), 0)",
        "INSERT INTO t VALUES (1, randomblob(4))",
        "INSERT INTO t VALUES (1, CURRENT_TIMESTAMP)",
        "INSERT INTO t VALUES (1, datetime('now'))",
        "INSERT INTO t VALUES (1, DateTime(' NOW '))",
        "INSERT INTO t VALUES (1, date())",
        "INSERT INTO t VALUES (1, strftime('%s'))",
        "INSERT INTO t VALUES (1, unixepoch('subsec'))",
        "INSERT INTO t VALUES (1, datetime(0, 'unixepoch', 'localtime'))",
        "INSERT INTO t SELECT 1, last_insert_rowid()",
    ] {
        let reply = subject.one(sql).await;
        assert!(refused(&reply).contains("not the same on every node"), "{sql}: {reply:?}");
    }
    // As a default value, and in a trigger.
    rows(subject.one("CREATE TABLE d (a INTEGER PRIMARY KEY, at DEFAULT CURRENT_TIMESTAMP)").await);
    refused(&subject.one("INSERT INTO d (a) VALUES (1)").await);
    rows(
        subject
            .one("CREATE TRIGGER g AFTER INSERT ON t BEGIN UPDATE t SET b = random(); END")
            .await,
    );
    refused(&subject.one("INSERT INTO t VALUES (1, 1)").await);
    assert_eq!(subject.machine.len(), 0);
}

#[tokio::test]
async fn times_that_are_the_same_everywhere_are_carried_out() {
    let mut subject = Subject::new();
    let sql = "INSERT INTO t VALUES (log_time_ms(), datetime(log_time_ms() / 1000, 'unixepoch', \
               '+1 day')) RETURNING *";
    let expected = vec![vec![1_700_000_000_000.into(), "2023-11-15 22:13:20".into()]];
    assert_eq!(rows(subject.one(sql).await), expected);
}

#[tokio::test]
async fn statements_keep_to_the_replicated_database() {
    let mut subject = Subject::new();
    for sql in [
        "ATTACH '/tmp/other.db' AS other",
        "PRAGMA synchronous = OFF",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT mine",
        "CREATE TEMP TABLE x (a)",
        "UPDATE _d_engine SET position = 0",
        "DROP TABLE _d_engine",
        "VACUUM",
        "INSERT INTO t VALUES (1, 1); INSERT INTO t VALUES (2, 2)",
        "no statement",
        "",
    ] {
        refused(&subject.one(sql).await);
    }
    assert_eq!((subject.machine.len(), subject.machine.last_applied().index.get()), (0, 13));
    refused(&subject.ask("DELETE FROM t"));
    refused(&subject.ask("ATTACH '/tmp/other.db' AS other"));
}

/// The result does not depend on how entries are grouped into chunks.
#[tokio::test]
async fn a_statement_that_fails_takes_nothing_with_it() {
    let statements = [
        "INSERT INTO t VALUES (1, 'one')",
        "INSERT INTO t VALUES (2, 'two'), (1, 'again')",
        "INSERT OR ROLLBACK INTO t VALUES (1, 'again')",
        "INSERT OR FAIL INTO t VALUES (3, 'three'), (1, 'again')",
        "INSERT INTO t VALUES (4, 'four')",
    ];
    let (mut whole, mut single) = (Subject::new(), Subject::new());
    let replies = whole.chunk(&statements).await;
    let mut singly = Vec::new();
    for sql in statements {
        singly.push(single.one(sql).await);
    }
    assert_eq!(replies, singly);
    assert!(refused(&replies[1]).contains("UNIQUE"), "{replies:?}");
    assert!(refused(&replies[2]).contains("ROLLBACK"), "{replies:?}");
    refused(&replies[3]);
    for subject in [&whole, &single] {
        let expected = vec![vec![1.into(), "one".into()], vec![4.into(), "four".into()]];
        assert_eq!(rows(subject.ask("SELECT * FROM t")), expected);
    }
}
