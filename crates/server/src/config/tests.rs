use super::*;

const CLUSTER: &str = "00112233445566778899aabbccddeeff";

/// Parses a config file in which `from` is replaced by `to`.
fn three_nodes(from: &str, to: &str) -> Result<Config, String> {
    let text = format!(
        r#"
node_id = 2
cluster_id = "{CLUSTER}"
data_dir = "data"
heartbeat_interval_ms = 100
members = [
  {{ id = 1, peer_addr = "127.0.0.1:7001", client_addr = "127.0.0.1:8001" }},
  {{ id = 2, peer_addr = "127.0.0.1:7002", client_addr = "127.0.0.1:8002" }},
  {{ id = 3, peer_addr = "[::1]:7003" }},
]
"#
    );
    assert!(text.contains(from), "the config has no such line: {from}");
    Config::from_toml(&text.replacen(from, to, 1)).map_err(|error| error.to_string())
}

#[test]
fn a_good_file_is_accepted_with_defaults_for_the_rest() {
    let config = three_nodes("", "").unwrap();
    assert_eq!(config.node_id, Some(2));
    assert_eq!(config.cluster().unwrap().to_string(), CLUSTER);
    assert_eq!(config.election_timeout_min_ms, 500);
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.peer_listen_addr(), "127.0.0.1:7002");
    assert_eq!(config.client_listen_addr(), Some("127.0.0.1:8002"));
    let membership = config.membership("", "").unwrap();
    assert_eq!(membership.members().len(), 3);
    assert_eq!(membership.members()[2].client_addr, "");
}

#[test]
fn a_node_alone_listens_on_loopback_and_serves_no_clients() {
    let config = Config { data_dir: "data".into(), ..Config::default() };
    config.validate().unwrap();
    assert_eq!(config.peer_listen_addr(), "127.0.0.1:0");
    assert_eq!(config.client_listen_addr(), None);
    let membership = config.membership("127.0.0.1:4711", "").unwrap();
    assert_eq!(membership.members()[0].peer_addr, "127.0.0.1:4711");
}

#[test]
fn an_empty_client_listen_means_no_client_service() {
    let config = three_nodes("node_id = 2", "node_id = 2\nclient_listen = \"\"").unwrap();
    assert_eq!(config.client_listen_addr(), None);
}

#[test]
fn wildcards_and_names_may_be_listened_on_and_dialled() {
    three_nodes("node_id = 2", "node_id = 2\npeer_listen = \"0.0.0.0:7002\"").unwrap();
    three_nodes("127.0.0.1:7001", "node-1.example_net:7001").unwrap();
}

/// Each case: the line, its replacement, and the whole message.
#[allow(clippy::too_many_lines)] // A table.
#[test]
fn every_refusal_names_field_value_and_what_is_allowed() {
    let host_port = "write it as host:port, for example \"127.0.0.1:7001\" or \"[::1]:7001\"";
    let data = "data_dir = \"data\"";
    let heartbeat = "heartbeat_interval_ms = 100";
    let cases: &[(&str, &str, String)] = &[
        (data, "", "`data_dir` is not set; set it to a directory that only this node uses".into()),
        (data, "data_dir = \"~/x\"", "`data_dir` is ~/x; `~` is not expanded: write the whole path".into()),
        (data, "data_dir = \"a\\u0000b\"", "`data_dir` is \"a\\0b\"; a path must not contain a NUL byte".into()),
        ("node_id = 2", "node_id = 0", "`node_id` is 0; ids start at 1".into()),
        (
            "node_id = 2",
            "node_id = 4",
            "`node_id` is 4; `members` lists 1, 2, 3: this node must be among them".into(),
        ),
        ("id = 1,", "id = 0,", "`members[0].id` is 0; ids start at 1".into()),
        (
            "id = 3,",
            "id = 1,",
            "`members[2].id` is 1; another member has the same id: every member needs its own".into(),
        ),
        (
            "127.0.0.1:7002",
            "127.0.0.1:7001",
            "`members[1].peer_addr` is 127.0.0.1:7001; members[0].peer_addr has the same address: every address belongs to one service of one node".into(),
        ),
        (
            "127.0.0.1:8002",
            "127.0.0.1:7002",
            "`members[1].client_addr` is 127.0.0.1:7002; members[1].peer_addr has the same address: every address belongs to one service of one node".into(),
        ),
        ("127.0.0.1:7001", "127.0.0.1", format!("`members[0].peer_addr` is \"127.0.0.1\"; {host_port}")),
        ("127.0.0.1:7001", "", format!("`members[0].peer_addr` is \"\"; {host_port}")),
        ("127.0.0.1:7001", "a:70000", format!("`members[0].peer_addr` is \"a:70000\"; {host_port}")),
        ("127.0.0.1:7001", "a:+1", format!("`members[0].peer_addr` is \"a:+1\"; {host_port}")),
        ("127.0.0.1:7001", "a b:1", format!("`members[0].peer_addr` is \"a b:1\"; {host_port}")),
        ("127.0.0.1:8001", "http://a:1", format!("`members[0].client_addr` is \"http://a:1\"; {host_port}")),
        ("[::1]:7003", "::1:7003", format!("`members[2].peer_addr` is \"::1:7003\"; {host_port}")),
        (
            "127.0.0.1:7001",
            "127.0.0.1:0",
            "`members[0].peer_addr` is \"127.0.0.1:0\"; port 0 cannot be dialled: name the port".into(),
        ),
        (
            "127.0.0.1:7001",
            "0.0.0.0:7001",
            "`members[0].peer_addr` is \"0.0.0.0:7001\"; 0.0.0.0 cannot be dialled: name the host; listen addresses may be wildcards".into(),
        ),
        (
            &format!("cluster_id = \"{CLUSTER}\""),
            "",
            "`cluster_id` is not set; a cluster of 3 members needs the same 32 hexadecimal digits on every node".into(),
        ),
        (CLUSTER, "abc", "`cluster_id` is \"abc\"; write 32 hexadecimal digits, not all 0".into()),
        (
            CLUSTER,
            "00000000000000000000000000000000",
            "`cluster_id` is \"00000000000000000000000000000000\"; write 32 hexadecimal digits, not all 0".into(),
        ),
        (data, "data_dir = \"d\"\npeer_listen = \"7002\"", format!("`peer_listen` is \"7002\"; {host_port}")),
        (
            data,
            "data_dir = \"d\"\npeer_listen = \"127.0.0.1:0\"",
            "`peer_listen` is \"127.0.0.1:0\"; other members cannot find port 0: name the port".into(),
        ),
        (data, "data_dir = \"d\"\nclient_listen = \"x\"", format!("`client_listen` is \"x\"; {host_port}")),
        (
            data,
            "data_dir = \"d\"\nclient_listen = \"127.0.0.1:7002\"",
            "`client_listen` is \"127.0.0.1:7002\"; peer_listen has the same address: use another port".into(),
        ),
        (
            heartbeat,
            "heartbeat_interval_ms = 0",
            "`heartbeat_interval_ms` is 0; allowed: 1 to 600000 ms".into(),
        ),
        (
            heartbeat,
            "heartbeat_interval_ms = 200",
            "`election_timeout_min_ms` is 500; allowed: 600 ms (3 times heartbeat_interval_ms) to 600000 ms".into(),
        ),
        (
            heartbeat,
            "election_timeout_max_ms = 500",
            "`election_timeout_max_ms` is 500; allowed: more than election_timeout_min_ms (500 ms), so that nodes draw different timeouts, to 600000 ms".into(),
        ),
        (
            heartbeat,
            "election_timeout_max_ms = 600001",
            "`election_timeout_max_ms` is 600001; allowed: more than election_timeout_min_ms (500 ms), so that nodes draw different timeouts, to 600000 ms".into(),
        ),
        (
            heartbeat,
            "clock_drift_percent_max = 101",
            "`clock_drift_percent_max` is 101; allowed: 0 to 100; 100 turns the lease off".into(),
        ),
        (
            heartbeat,
            "max_clock_offset_ms = 0",
            "`max_clock_offset_ms` is 0; allowed: 1 ms to 600000 ms".into(),
        ),
    ];
    for (from, to, expected) in cases {
        assert_eq!(three_nodes(from, to).as_ref(), Err(expected), "{from} -> {to}");
    }
}

#[test]
fn every_limit_has_a_range() {
    let (most, count) = (1_usize << 34, 1_usize << 24);
    let (frame, mebibyte) = (8_usize << 20, 1_usize << 20);
    let cases = [
        ("max_command_bytes", 1, frame, " bytes"),
        ("max_pending_proposals", 1, count, ""),
        ("max_pending_bytes", mebibyte, most, " bytes"),
        ("max_pending_reads", 1, count, ""),
        ("max_client_connections", 1, count, ""),
        ("max_client_bytes", mebibyte, most, " bytes"),
        ("max_calls_per_connection", 1, count, ""),
        ("max_uncommitted_bytes", mebibyte, most, " bytes"),
        ("max_inflight_bytes", mebibyte, most, " bytes"),
        ("max_append_bytes", 1, frame, " bytes"),
        ("max_apply_entries", 1, count, ""),
        ("log_cache_bytes", mebibyte, most, " bytes"),
        ("segment_bytes", 4 * mebibyte, 1 << 30, " bytes"),
        ("min_free_bytes", 1, 1 << 44, " bytes"),
        ("peer_queue_frames", 1, count, ""),
        ("peer_queue_bytes", 2 * mebibyte, most, " bytes"),
    ];
    assert_eq!(cases.map(|case| case.0), fields::LIMITS);
    for (name, least, highest, unit) in cases {
        for (value, good) in [(least - 1, false), (least, true), (highest + 1, false)] {
            let text = format!("data_dir = \"d\"\nlimits.{name} = {value}");
            let result = Config::from_toml(&text).map(|_| ()).map_err(|error| error.to_string());
            let refusal =
                format!("`limits.{name}` is {value}; allowed: {least} to {highest}{unit}");
            assert_eq!(result, if good { Ok(()) } else { Err(refusal) });
        }
    }
}

#[test]
fn unknown_fields_suggest_the_nearest_known_one() {
    let cases = [
        ("nodeid = 1", "there is no field `nodeid`; did you mean `node_id`?"),
        (
            "election_timeout_ms = 1",
            "there is no field `election_timeout_ms`; did you mean `election_timeout_max_ms`?",
        ),
        ("colour = 1", "there is no field `colour`"),
        (
            "limits.segment_byte = 1",
            "there is no field `limits.segment_byte`; did you mean `segment_bytes`?",
        ),
        (
            "members = [{ id = 1, peer_adress = \"a:1\" }]",
            "there is no field `members[0].peer_adress`; did you mean `peer_addr`?",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(Config::from_toml(text).unwrap_err().to_string(), message);
    }
}

#[test]
fn a_value_of_the_wrong_type_is_shown_in_its_line() {
    for text in ["node_id = \"two\"", "node_id = -2", "data_dir = 7", "limits = 3", "node_id = "] {
        let message = Config::from_toml(text).unwrap_err().to_string();
        assert!(message.contains(text.trim_end()) && message.contains("line 1"), "{message}");
    }
}

/// The lists of names from which suggestions are made must match the fields that exist.
#[test]
fn the_known_names_are_the_fields_of_the_config() {
    let everything = Config {
        cluster_id: Some(CLUSTER.to_owned()),
        peer_listen: Some("a:1".to_owned()),
        client_listen: Some("a:2".to_owned()),
        members: vec![MemberConfig {
            id: 1,
            peer_addr: "a:1".to_owned(),
            client_addr: String::new(),
        }],
        node_id: Some(1),
        replaces: Some(3),
        admission: Some(Admission::Open),
        advertise_peer: Some("a:3".to_owned()),
        advertise_client: Some("a:4".to_owned()),
        ..Config::default()
    };
    let table = toml::Table::try_from(everything).unwrap();
    let names =
        |table: &toml::Table| table.keys().cloned().collect::<std::collections::BTreeSet<_>>();
    let listed = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names(&table), listed(fields::CONFIG));
    assert_eq!(names(table["limits"].as_table().unwrap()), listed(fields::LIMITS));
    assert_eq!(names(table["snapshots"].as_table().unwrap()), listed(fields::SNAPSHOTS));
    let tables: Vec<_> =
        table.iter().filter(|(_, value)| value.is_table()).map(|(name, _)| name).collect();
    assert_eq!(tables, ["limits", "snapshots"], "each table's names are compared above");
    assert_eq!(names(table["members"][0].as_table().unwrap()), listed(fields::MEMBER));
}

#[test]
fn errors_of_a_file_name_the_file_and_nothing_is_created() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    let missing = Config::from_file(&path).unwrap_err().to_string();
    assert!(missing.starts_with(&format!("config file {}: ", path.display())), "{missing}");
    for text in ["node_id = 0\ndata_dir = \"d\"", "colour = 1", "node_id = \"x\""] {
        fs::write(&path, text).unwrap();
        let message = Config::from_file(&path).unwrap_err().to_string();
        assert!(message.starts_with(&format!("config file {}: ", path.display())), "{message}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_relative_data_dir_starts_at_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    fs::write(&path, "data_dir = \"data/1\"").unwrap();
    assert_eq!(Config::from_file(&path).unwrap().data_dir, dir.path().join("data/1"));
    fs::write(&path, "data_dir = \"/abs\"").unwrap();
    assert_eq!(Config::from_file(&path).unwrap().data_dir, Path::new("/abs"));
    fs::write(&path, "node_id = 1").unwrap();
    assert!(
        Config::from_file(&path).is_err(),
        "a missing data_dir must not become the file's directory"
    );
}

/// Strangers reach an address that is not on loopback, so nodes must be announced there.
#[test]
fn a_cluster_beyond_loopback_admits_invited_nodes_unless_it_says_otherwise() {
    use d_engine_storage::Admission as Stored;
    let admission = |config: &Config, peer_addr: &str| {
        config.membership(peer_addr, "").map(|membership| membership.admission())
    };
    let alone = Config::default();
    for local in ["127.0.0.1:7101", "localhost:7101", "[::1]:7101"] {
        assert_eq!(admission(&alone, local), Ok(Stored::Open), "{local}");
    }
    for reached in ["", "10.0.0.1:7101", "db-1.example:7101", "[fe80::1]:7101"] {
        assert_eq!(admission(&alone, reached), Ok(Stored::Invited), "{reached}");
    }
    for (word, stored) in [("open", Stored::Open), ("invited", Stored::Invited)] {
        let toml = format!("data_dir = \"data\"\nadmission = \"{word}\"\n");
        let config = Config::from_toml(&toml).unwrap();
        assert_eq!(admission(&config, "10.0.0.1:7101"), Ok(stored));
        assert_eq!(admission(&config, "127.0.0.1:7101"), Ok(stored));
    }
    let wrong = Config::from_toml("data_dir = \"data\"\nadmission = \"all\"\n").unwrap_err();
    assert!(wrong.to_string().contains("write open or invited"), "{wrong}");
}
