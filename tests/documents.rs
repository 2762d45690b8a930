//! What documents say of the program is what the program says of itself.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs};

use ringspan::{
    error::Code,
    telemetry::metrics::{MetricInfo, Metrics},
};

fn document(name: &str) -> String {
    fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Cells of the tables' rows whose first cell is a word in code style, which is given bare.
fn rows(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split_once("` |"))
        .map(|(first, rest)| {
            let rest = rest.trim_end().trim_end_matches('|');
            std::iter::once(first).chain(rest.split('|').map(str::trim)).collect()
        })
        .collect()
}

/// Files of Rust and Python below a directory.
fn sources(dir: &std::path::Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs" || it == "py") {
            found.push(fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_attack_of_the_threat_model_names_a_test_that_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = Vec::new();
    sources(&root.join("src"), &mut code);
    sources(&root.join("tests"), &mut code);
    let text = document("SECURITY.md");
    let table = text.split("## Threat model").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 20, "{rows:?}");
    for row in rows {
        let tried = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let names: Vec<_> = tried.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test in {row}");
        for name in names {
            let rust = format!("fn {name}(");
            let python = format!("def {name}(");
            let there = code.iter().any(|code| code.contains(&rust) || code.contains(&python));
            let fuzzed = root.join("fuzz/corpus").join(name).is_dir();
            assert!(there || fuzzed, "there is no test {name}");
        }
    }
}

#[test]
fn every_error_code_stands_in_the_table_as_it_is() {
    let names: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(names.len(), Code::ALL.len());

    let text = document("docs/errors.md");
    let mut told = BTreeSet::new();
    for row in rows(&text) {
        let Some(code) = Code::parse(row[0]) else { panic!("there is no code {}", row[0]) };
        let retry = code.retry_after().map_or("–".to_owned(), |it| format!("{} s", it.as_secs()));
        let (status, close) = (code.status().to_string(), code.close().to_string());
        let is = [row[0], &status, &close, &retry, code.blame().label()];
        assert_eq!(row[..is.len()], is, "docs/errors.md, code, status, close, retry, blame");
        told.insert(row[0]);
    }
    assert_eq!(told, names);
}

#[test]
fn every_metric_stands_in_the_operators_list() {
    let text = document("docs/operations.md");
    let section = text.split("\n## Metrics\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let told: BTreeSet<_> = rows(section).iter().map(|row| row[..4].join(" | ")).collect();
    let line = |metric: MetricInfo| {
        let labels = match &metric.labels[..] {
            [] => "–".to_owned(),
            labels => labels.join(", "),
        };
        let help = metric.help.trim_end_matches('.');
        format!("{} | {} | {labels} | {help}", metric.name, metric.kind)
    };
    let exported: BTreeSet<_> = Metrics::new().list().into_iter().map(line).collect();
    assert_eq!(told, exported);
}
