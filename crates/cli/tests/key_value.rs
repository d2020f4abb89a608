//! The commands that work with records, against a cluster of `dev`.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::{Dev, TIMEOUT, wait_until};

#[test]
fn put_get_and_delete_do_what_they_say() {
    let dev = Dev::start();
    assert_eq!(dev.ok(&["put", "greeting", "hello"]), "");
    for consistency in ["linearizable", "lease"] {
        assert_eq!(dev.ok(&["get", "--consistency", consistency, "greeting"]), "hello");
    }
    assert_eq!(dev.ok(&["put", "--previous", "greeting", "good day"]), "hello");
    let first = dev.run(&["put", "--previous", "new", "1"]);
    assert_eq!((first.code, first.out.as_str()), (Some(0), ""));
    assert!(first.err.contains("\"new\" had no value before"), "{}", first.err);

    // Several values of one state are printed as lines; keys without a value are named.
    let several = dev.run(&["get", "new", "nothing", "greeting"]);
    assert_eq!((several.code, several.out.as_str()), (Some(3), "new\t1\ngreeting\tgood day\n"));
    assert!(several.err.contains("\"nothing\" has no value"), "{}", several.err);
    let json = dev.run(&["get", "--json", "new", "nothing"]);
    assert_eq!(json.code, Some(3));
    assert_eq!(
        json.out,
        "{\"key\":\"new\",\"value\":\"1\"}\n{\"key\":\"nothing\",\"value\":null}\n"
    );

    dev.ok(&["delete", "new"]);
    assert_eq!(dev.run(&["get", "new"]).code, Some(3));
    let again = dev.run(&["delete", "new"]);
    assert_eq!(again.code, Some(0));
    assert!(again.err.contains("\"new\" had no value"), "{}", again.err);
}

#[test]
fn cas_changes_only_what_is_as_expected_and_says_what_is_there() {
    let dev = Dev::start();
    dev.ok(&["cas", "--absent", "lock", "me"]);
    let taken = dev.run(&["cas", "--absent", "lock", "you"]);
    assert_eq!((taken.code, taken.out.as_str()), (Some(5), "me"), "{}", taken.err);
    assert!(taken.err.contains("nothing was changed"), "{}", taken.err);
    assert_eq!(dev.run(&["cas", "--expect", "you", "--delete", "lock"]).code, Some(5));
    dev.ok(&["cas", "--expect", "me", "lock", "still me"]);
    dev.ok(&["cas", "--expect", "still me", "--delete", "lock"]);
    let gone = dev.run(&["cas", "--expect", "me", "lock", "x"]);
    assert_eq!((gone.code, gone.out.as_str()), (Some(5), ""));
    assert!(gone.err.contains("\"lock\" has no value"), "{}", gone.err);
    // Meaningless combinations are refused before anything is sent.
    for wrong in [
        &["cas", "lock", "x"][..],
        &["cas", "--absent", "lock"],
        &["cas", "--absent", "--expect", "a", "lock", "x"],
        &["cas", "--absent", "--delete", "lock", "x"],
    ] {
        assert_eq!(dev.run(wrong).code, Some(2), "{wrong:?}");
    }
}

#[test]
fn a_key_with_a_time_to_live_vanishes_and_one_put_again_stays() {
    let dev = Dev::start();
    dev.ok(&["put", "--ttl", "100ms", "short", "v"]);
    dev.ok(&["put", "--ttl", "100ms", "renewed", "v"]);
    dev.ok(&["put", "--ttl", "1h", "renewed", "v"]);
    dev.ok(&["put", "--ttl", "100ms", "kept", "v"]);
    dev.ok(&["put", "kept", "v"]);
    // No other command is written: the leader's ticks move log time.
    wait_until(TIMEOUT, || (dev.run(&["get", "short"]).code == Some(3)).then_some(()));
    assert_eq!(dev.ok(&["get", "renewed", "kept"]), "renewed\tv\nkept\tv\n");
}

#[test]
fn scan_goes_through_the_keys_in_order_across_pages() {
    let dev = Dev::start();
    let file = dev.dir.join("words.tsv");
    let records: Vec<String> = (0..2_500).map(|n| format!("k{n:04}\tv{n}\n")).collect();
    fs::write(&file, records.concat()).unwrap();
    dev.ok(&["import", file.to_str().unwrap()]);
    dev.ok(&["put", "other", "o"]);

    // `scan` prints what was imported.
    assert_eq!(dev.ok(&["scan", "--prefix", "k"]), records.concat());
    assert_eq!(dev.ok(&["scan"]).lines().count(), 2_501);
    assert_eq!(dev.ok(&["scan", "--limit", "1500"]).lines().count(), 1_500);
    assert_eq!(dev.ok(&["scan", "--limit", "0"]), "");
    assert_eq!(dev.ok(&["scan", "--from", "k2498", "--keys-only"]), "k2498\nk2499\nother\n");
    assert_eq!(dev.ok(&["scan", "--from", "k0001", "--to", "k0003"]), records[1..3].concat());
    assert_eq!(
        dev.ok(&["scan", "--to", "k0001", "--json"]),
        "{\"key\":\"k0000\",\"value\":\"v0\"}\n"
    );
    assert_eq!(dev.ok(&["scan", "--from", "b", "--to", "a"]), "");
    for node in dev.endpoints.split(',') {
        wait_until(TIMEOUT, || {
            let args = ["scan", "--consistency", "eventual", "--endpoints", node, "--keys-only"];
            (dev.ok(&args).lines().count() == 2_501).then_some(())
        });
    }
    assert_eq!(dev.run(&["scan", "--prefix", "a", "--to", "b"]).code, Some(2));
}

#[test]
fn transfer_leader_moves_the_leadership() {
    let dev = Dev::start();
    let leader = dev.leader();
    let to = leader % 3 + 1;
    let told = dev.ok(&["transfer-leader", "--to", &to.to_string()]);
    assert_eq!(told, format!("node {to} leads (it was node {leader})\n"));
    assert_eq!(dev.leader(), to);
    let told = dev.ok(&["transfer-leader", "--to", &to.to_string()]);
    assert_eq!(told, format!("node {to} leads already\n"));
    dev.ok(&["transfer-leader"]);
    assert_ne!(dev.leader(), to);
    let asked = dev.run(&["skip-entry", "1:1"]);
    assert_eq!(asked.code, Some(2), "{}", asked.err);
    assert!(asked.out.contains("node 1 has applied everything up to index"), "{}", asked.out);
    assert!(
        asked.err.contains("nothing was changed") && asked.err.contains("--yes"),
        "{}",
        asked.err
    );
    let refused = dev.run(&["skip-entry", "1:1", "--yes"]);
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(refused.err.contains("is not skipped"), "{}", refused.err);
    let nobody = dev.run(&["transfer-leader", "--to", "9"]);
    assert_eq!(nobody.code, Some(1), "{}", nobody.err);
    dev.ok(&["put", "k", "v"]);
}

#[test]
fn what_cannot_be_used_is_refused_with_the_reason() {
    for (args, code, named) in [
        (&["put", "--ttl", "soon", "k", "v"][..], 2, "write for example"),
        (&["put", "--ttl", "0s", "k", "v"], 2, "longer than 0"),
        (&["put", "--ttl", "999999999999d", "k", "v"], 2, "too long"),
        (&["get"], 2, "<KEY>"),
        (&["scan", "--endpoints", "nowhere"], 2, "host:port"),
        (
            &["delete", "--endpoints", "127.0.0.1:1", "--timeout", "200ms", "k"],
            1,
            "cannot be reached",
        ),
        (&["scan", "--endpoints", "127.0.0.1:1", "--timeout", "200ms"], 1, "cannot be reached"),
        (
            &["transfer-leader", "--endpoints", "127.0.0.1:1", "--timeout", "200ms"],
            1,
            "cannot be reached",
        ),
        (&["transfer-leader", "--to", "0"], 2, "0"),
        (&["skip-entry", "131"], 2, "write TERM:INDEX"),
        (&["import", "/nonexistent/words.tsv"], 2, "/nonexistent/words.tsv"),
        (&["dev", "--nodes", "0"], 2, "0"),
    ] {
        let ended = support::run(args);
        assert_eq!(ended.code, Some(code), "{args:?}: {}", ended.err);
        assert!(ended.err.contains(named), "{args:?}: {named:?} is missing in {}", ended.err);
    }
}
