//! Where the database is, and that its password needs neither flag nor variable.

use std::io::Write as _;

use super::{super::dump::dump, *};

/// A file as a platform mounts a secret: with a line's end, or without.
pub(super) fn secret_file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn with(key: Key, file: &tempfile::NamedTempFile) -> Given {
    Given::upstream().flag(key, file.path().to_str().unwrap())
}

#[test]
fn the_databases_addresses_may_stand_in_files_and_are_never_shown() {
    let (url, direct) = (secret_file("postgres://u:hidden@h/d\n"), secret_file("postgres://x/d"));
    let path = direct.path().to_str().unwrap();
    let given = with(Key::DatabaseUrlFile, &url).flag(Key::DatabaseDirectUrlFile, path);
    let store = given.config().store;
    assert_eq!(store.url, "postgres://u:hidden@h/d");
    assert_eq!(store.direct_url.as_deref(), Some("postgres://x/d"));
    let shown = dump(&given.loaded().unwrap_or_else(|faults| panic!("{faults}")));
    assert!(!shown.contains("hidden"), "{shown}");
    // What was dumped names the file alone, so it loads again.
    let again = Given::default().file(&shown).config();
    assert_eq!(again.store.url, "postgres://u:hidden@h/d");
}

#[test]
fn an_address_stands_in_one_place_and_is_one() {
    let file = secret_file("postgres://h/d");
    with(Key::DatabaseUrlFile, &file)
        .env("RINGSPAN_DATABASE_URL", "postgres://h/d")
        .refused_with(&["--database-url-file", "only one of database-url and database-url-file"]);
    let wrong = secret_file("mysql://u:hidden@h/d");
    let given = with(Key::DatabaseUrlFile, &wrong);
    given.refused_with(&["--database-url-file", "a file with sqlite://PATH or postgres://"]);
    assert!(!given.faults().contains("hidden"));
    Given::upstream()
        .flag(Key::DatabaseUrlFile, "/nonexistent")
        .refused_with(&["--database-url-file: got \"/nonexistent\"", "a readable file"]);
    let sqlite = secret_file("sqlite:///a.db");
    let direct = file.path().to_str().unwrap();
    with(Key::DatabaseUrlFile, &sqlite)
        .flag(Key::DatabaseDirectUrlFile, direct)
        .refused_with(&["--database-direct-url-file", "nothing, since database-url is SQLite"]);
}

#[test]
fn a_password_of_its_own_file_goes_to_both_addresses_whatever_its_characters() {
    let file = secret_file("p@s/s?&#%ü\n");
    let given = || with(Key::DatabasePasswordFile, &file);
    let store = given()
        .flag(Key::DatabaseUrl, "postgres://u@h/d?sslmode=require")
        .flag(Key::DatabaseDirectUrl, "postgres://u@x/d")
        .config()
        .store;
    let coded = "password=p%40s%2Fs%3F%26%23%25%C3%BC";
    assert_eq!(store.url, format!("postgres://u@h/d?sslmode=require&{coded}"));
    assert_eq!(store.direct_url, Some(format!("postgres://u@x/d?{coded}")));
    for url in ["postgres://u:hidden@h/d", "postgres://h/d?password=hidden"] {
        let given = given().flag(Key::DatabaseUrl, url);
        given.refused_with(&["--database-password-file", "holds a password already"]);
        assert!(!given.faults().contains("hidden"));
    }
    given().refused_with(&["--database-password-file", "SQLite"]);
    with(Key::DatabasePasswordFile, &secret_file("\n"))
        .flag(Key::DatabaseUrl, "postgres://h/d")
        .refused_with(&["--database-password-file", "a file with a password"]);
}
