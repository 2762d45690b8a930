use clap::{CommandFactory, Parser};

use super::{
    Exit,
    args::{Cli, CliCommand, ConfigCommand},
    config,
};
use crate::config::settings::{Key, SETTINGS};

fn parse(line: &str) -> Cli {
    Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn run(command: &ConfigCommand) -> (Exit, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = config::run(command, &|_| None, &mut out, &mut err).unwrap();
    (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_of_the_contract_is_there() {
    for line in [
        "ringspan dev --nodes 3 --upstream http://127.0.0.1:9000",
        "ringspan serve",
        "ringspan sample-upstream --listen 127.0.0.1:0",
        "ringspan migrate run --database-url sqlite://x.db",
        "ringspan migrate check",
        "ringspan migrate wait --timeout 30s",
        "ringspan ring --json",
        "ringspan sessions --key K --json",
        "ringspan top --admin-url http://10.0.0.1:9090",
        "ringspan drain node-0",
        "ringspan config check FILE",
        "ringspan config schema",
        "ringspan config dump --listen 127.0.0.1:1",
        "ringspan metrics list",
        "ringspan selfcheck --url http://127.0.0.1:8080",
        "ringspan completions zsh",
        "ringspan man --out man",
    ] {
        parse(line);
    }
}

#[test]
fn every_setting_is_a_flag_and_its_help_names_the_variable() {
    let mut command = Cli::command();
    let serve = command.find_subcommand_mut("serve").unwrap();
    let help = serve.render_long_help().to_string();
    for setting in SETTINGS {
        assert!(help.contains(&format!("--{}", setting.name)), "{}", setting.name);
        assert!(help.contains(&setting.env()), "{}", setting.name);
        assert!(help.contains(setting.section.title()), "{}", setting.name);
    }
}

#[test]
fn a_switch_works_with_and_without_a_value() {
    for (line, value) in [
        ("ringspan serve --migrate-on-start", Some("true")),
        ("ringspan serve --migrate-on-start=false", Some("false")),
        ("ringspan serve", None),
    ] {
        let CliCommand::Serve(args) = parse(line).command else { panic!("{line}") };
        assert_eq!(args.get(Key::MigrateOnStart), value, "{line}");
    }
}

#[test]
fn debug_of_the_command_line_shows_no_secret() {
    let cli = parse(
        "ringspan serve --peer-token hunter2hunter2hunter2 --database-url postgres://u:hunter2@h/d",
    );
    let text = format!("{cli:?}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn check_says_ok_or_all_faults_with_status_64() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ringspan.example.toml").to_owned();
    let (exit, out, err) = run(&ConfigCommand::Check { file: example });
    assert_eq!((exit, out.as_str(), err.as_str()), (Exit::Success, "ok\n", ""));

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "listen = \"x\"\nlease_ttl = \"y\"\nweihgt = 1\n").unwrap();
    let file = file.path().to_str().unwrap().to_owned();
    let (exit, out, err) = run(&ConfigCommand::Check { file });
    assert_eq!((exit, exit.status(), out.as_str()), (Exit::Usage, 64, ""));
    assert_eq!(err.lines().count(), 4, "{err}");
    assert!(err.contains("did you mean `weight`?"), "{err}");
}

#[test]
fn schema_and_reference_are_printed_whatever_the_configuration() {
    let (exit, schema, _) = run(&ConfigCommand::Schema);
    assert_eq!(exit, Exit::Success);
    assert!(serde_json::from_str::<serde_json::Value>(&schema).unwrap()["properties"].is_object());
    let (exit, reference, _) = run(&ConfigCommand::Reference);
    assert_eq!(exit, Exit::Success);
    assert!(reference.contains("RINGSPAN_LEASE_TTL"));
}
