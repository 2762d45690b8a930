use std::time::Duration;

use serde_json::{Value, json};

use super::{Given, ROUTED, database::secret_file};
use crate::config::{
    ServeArgs,
    dump::dump,
    load::load_store,
    reference::markdown,
    schema::schema,
    settings::{InFile, Key, SETTINGS},
};

const EXAMPLE: &str = include_str!("../../../docs/ringspan.example.toml");

fn uncommented(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|l| l.split(" # ").next())
        .collect()
}

#[test]
fn the_example_loads_without_a_warning() {
    let config = Given::default().file(EXAMPLE).config();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert_eq!(config.routes.len(), 3);
}

#[test]
fn the_systemd_unit_gives_the_example_time_to_drain() {
    const UNIT: &str = include_str!("../../../deploy/ringspan.service");

    let stop =
        UNIT.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")?.strip_suffix('s'));
    let stop = Duration::from_secs(stop.unwrap().parse().unwrap());
    let timing = Given::default().file(EXAMPLE).config().timing;
    let drain = timing.drain_dwell + timing.drain_timeout + timing.drain_cleanup;
    // A drain may go on by 5 s where the database says nothing.
    assert!(drain + Duration::from_secs(5) <= stop, "{drain:?} of drain in {stop:?}");
}

#[test]
fn a_dump_loads_again_to_the_same_configuration() {
    let api_key = format!(
        "static_members = [\"a=127.0.0.1:1\", \"b=[::1]:2\"]\nreplay_bytes = 65536\n\
         {ROUTED}auth_placeholder\n[auth]\nmode = \"api_key\"\n[[auth.key]]\nname = \"alice\"\n\
         sha256 = \"{}\"\n",
        "0f".repeat(32)
    );
    let bearer = "[[upstream]]\nname = \"b\"\nurl = \"https://h/x?y=z\"\nauth = { bearer_env = \"K\" }\n\
                  [[route]]\npath = \"/r/{room}\"\nprofile = \"opaque\"\nupstream = \"b\"\n\
                  session_key = [\"path:room\", \"header:x-s\"]\n";
    for given in [
        Given::upstream(),
        Given::upstream().flag(Key::LogFilter, "a=\"quoted # text\"").flag(Key::LogFilter, "warn"),
        Given::default().file(EXAMPLE),
        Given::default().file(&api_key.replace("auth_placeholder", bearer)),
    ] {
        let secrets = |given: Given| {
            given.env("K", "sk-hidden").env("RINGSPAN_PEER_TOKEN", "0123456789abcdef")
        };
        let given = secrets(given).env("RINGSPAN_LEASE_TTL", "20s");
        let loaded = given.loaded().unwrap_or_else(|faults| panic!("{faults}"));
        let first = dump(&loaded);
        let again = secrets(Given::default().file(&first)).loaded();
        let again = again.unwrap_or_else(|faults| panic!("{faults}\n{first}"));
        assert_eq!(uncommented(&dump(&again)), uncommented(&first));
        assert_eq!(format!("{:?}", again.config), format!("{:?}", loaded.config));
    }
}

/// Thirty-two times an `h`.
const HIDDEN_KEY: &str = "aGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGg=";

#[test]
fn no_secret_is_ever_shown() {
    let file = ROUTED
        .replace("[[route]]", "auth = { bearer_env = \"K\" }\n[[route]]")
        .replace("/v1/responses\"\n", "/v1/responses?api_key=hidden\"\n");
    let file = file.replace("path = \"/v1/responses?api_key=hidden\"", "path = \"/v1/responses\"");
    let given = Given::default()
        .file(&file)
        .env("K", "sk-hidden")
        .env("RINGSPAN_PEER_TOKEN", "hidden-hidden-hidden")
        .env("RINGSPAN_HISTORY_KEY", HIDDEN_KEY)
        .env("RINGSPAN_DATABASE_URL", "postgres://u:hidden@h/d?password=hidden");
    let loaded = given.loaded().unwrap_or_else(|faults| panic!("{faults}"));
    let shown = dump(&loaded);
    assert!(!shown.contains("hidden"), "{shown}");
    assert!(!shown.contains(HIDDEN_KEY), "{shown}");
    assert!(shown.contains("# history_key = \"<redacted>\" # RINGSPAN_HISTORY_KEY"), "{shown}");
    assert!(shown.contains("# peer_token = \"<redacted>\" # RINGSPAN_PEER_TOKEN"), "{shown}");
    let debug = format!("{:?}", loaded.config);
    assert!(!debug.contains("hidden"), "{debug}");
    assert!(!debug.contains("104, 104") && debug.contains("<1 redacted>"), "{debug}");
    let args = ServeArgs::default().with(Key::PeerToken, "hidden");
    assert!(!format!("{args:?}").contains("hidden"));
}

#[test]
fn migrate_needs_nothing_but_the_database() {
    let env =
        |name: &str| (name == "RINGSPAN_DATABASE_URL").then(|| "postgres://db/ringspan".to_owned());
    let options = load_store(&ServeArgs::default(), &env).unwrap();
    assert_eq!(options.url, "postgres://db/ringspan");
    let args = ServeArgs::default().with(Key::DatabaseUrl, "mysql://u:hidden@h/d");
    let faults = load_store(&args, &env).unwrap_err().to_string();
    assert!(faults.contains("--database-url: got \"mysql://u:***@h/d\""), "{faults}");
    let file = secret_file("postgres://u@h/d");
    let args = ServeArgs::default().with(Key::DatabaseUrlFile, file.path().to_str().unwrap());
    assert_eq!(load_store(&args, &|_| None).unwrap().url, "postgres://u@h/d");
}

#[test]
fn the_schema_accepts_the_example_and_every_dump_and_refuses_slips() {
    let accepts = |text: &str| {
        let table: toml::Table = text.parse().unwrap();
        conforms(&schema(), &serde_json::to_value(table).unwrap(), "$")
    };
    assert_eq!(accepts(EXAMPLE), Ok(()));
    assert_eq!(
        accepts(&dump(&Given::upstream().loaded().map_err(|f| f.to_string()).unwrap())),
        Ok(())
    );
    for slip in [
        "lisen = \"127.0.0.1:1\"",
        "weight = \"100\"",
        "weight = 0",
        "migrate_on_start = \"true\"",
        "[[route]]\npath = \"/\"",
        "[auth]\nmode = \"token\"",
        "[[upstream]]\nname = \"a\"\nurl = \"ws://h\"\nauth = { bearer = \"x\" }",
    ] {
        assert!(accepts(slip).is_err(), "{slip}");
    }
}

#[test]
fn the_schema_knows_every_setting_that_the_file_may_hold() {
    let schema = schema();
    for setting in SETTINGS.iter().filter(|setting| setting.in_file() == InFile::Top) {
        let name = setting.file_key().unwrap();
        assert!(schema["properties"][&name].is_object(), "{name}");
    }
}

#[test]
fn the_reference_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == markdown(),
        "docs/configuration.md is out of date: ringspan config reference > docs/configuration.md"
    );
}

/// As much of JSON Schema as our schema uses, patterns aside.
fn conforms(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(options) = schema.get("anyOf").and_then(Value::as_array) {
        let fits = options.iter().any(|option| conforms(option, value, at).is_ok());
        return if fits { Ok(()) } else { Err(format!("{at}: fits nothing of anyOf")) };
    }
    if schema.get("const").is_some_and(|constant| constant != value) {
        return Err(format!("{at}: not the constant"));
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        return Err(format!("{at}: none of the words"));
    }
    let fits = match schema["type"].as_str() {
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some("integer") => value.as_u64().is_some_and(|number| {
            let bound = |name: &str, other| schema[name].as_u64().unwrap_or(other);
            (bound("minimum", 0)..=bound("maximum", u64::MAX)).contains(&number)
        }),
        _ => true,
    };
    if !fits {
        return Err(format!("{at}: {value} is not of type {}", schema["type"]));
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        conforms(&schema["items"], item, &format!("{at}[{index}]"))?;
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    for (name, item) in object {
        let Some(property) = schema["properties"].get(name) else {
            return Err(format!("{at}.{name}: unknown"));
        };
        conforms(property, item, &format!("{at}.{name}"))?;
    }
    let missing = schema["required"].as_array().into_iter().flatten();
    let missing = missing.filter_map(Value::as_str).find(|name| !object.contains_key(*name));
    missing.map_or(Ok(()), |name| Err(format!("{at}.{name}: missing ({})", json!(object))))
}
