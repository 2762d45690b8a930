//! The rules of ARCHITECTURE.md, held by a test: who may import whom, what stays pure, what
//! is never written. Reads the sources as text, so it needs nothing built.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// Modules from the ground up. One may import those of lower lines only; those of one line
/// do not import each other.
const LAYERS: &[&[&str]] = &[
    &["error", "ids", "jitter", "net"],
    &["wire"],
    &["bell", "link"],
    &["store"],
    &["config"],
    &["telemetry"],
    &["ownership", "ring"],
    &["upstream"],
    &["session"],
    &["peer"],
    &["route"],
    &["edge"],
    &["admin"],
    &["app"],
    &["cli"],
    // What the fuzzer drives, of any layer; never part of the program.
    &["fuzz"],
];

/// Beside the layers: a party to test against shares no code with what it tests.
const SAMPLE: &str = "sample";
const SAMPLE_MAY: &[&str] = &["error", "config::Secret", "net"];

/// External crates that have a home (by the start of their names).
const HOMES: &[(&str, &[&str])] = &[
    ("sqlx", &["store"]),
    ("aws_lc_rs", &["session"]),
    // The ring's own protocol, and the one that collectors speak.
    ("tonic", &["peer", "telemetry"]),
    ("prost", &["peer", "telemetry"]),
    ("opentelemetry", &["telemetry"]),
    ("tracing_opentelemetry", &["telemetry"]),
    ("hashring", &["ring"]),
    ("clap", &["cli"]),
    ("turmoil", &["net"]),
    ("tokio_tungstenite", &[SAMPLE]),
    ("tungstenite", &[SAMPLE]),
];

/// Rules and data: driven by tests without a socket, a clock or a database.
const PURE: &[&str] = &[
    "app/deadline.rs",
    "error.rs",
    "ids.rs",
    "wire/codec.rs",
    "wire/frame.rs",
    "ownership/lease.rs",
    "ownership/outage.rs",
    "ownership/reaper.rs",
    "ring/build.rs",
    "ring/departures.rs",
    "ring/placement.rs",
    "ring/rebalance.rs",
    "session/claiming.rs",
    "session/event.rs",
    "session/event/",
    "session/fields.rs",
    "session/history.rs",
    "session/log.rs",
    "session/numbering.rs",
    "session/seal.rs",
    "session/transfer.rs",
    "session/turns.rs",
    "session/turns/",
    "upstream/breaker.rs",
    "upstream/choice.rs",
];
const IMPURE: &[&str] =
    &["tokio", "tokio_util", "sqlx", "tonic", "axum", "hyper", "std::net", "std::fs", "std::env"];
/// A type, not a clock: a pure module is given its values.
const INSTANT: &str = "tokio::time::Instant";

/// Longest file, tests not counted.
const MAX_LINES: usize = 450;
/// Longer files, each with its reason. Empty is the aim.
const LONG: &[(&str, &str)] = &[];

#[test]
fn imports_point_one_way() {
    let rule = "a module imports only modules of lower layers (ARCHITECTURE.md, \"Layers\")";
    let mut faults = Faults::new(rule);
    for file in sources("src") {
        let Some(from) = file.module() else { continue };
        for import in file.imports() {
            let to = import.path.split("::").next().unwrap_or_default();
            if to != from && from != SAMPLE && !may_import(from, to) {
                faults.add(&file, import.line, &format!("{from} imports {}", import.path));
            }
        }
    }
    faults.none();
}

#[test]
fn every_module_has_a_layer() {
    let mut faults = Faults::new("every module of src/ stands in LAYERS of this test");
    for file in sources("src") {
        let known = file.module().is_none_or(|name| name == SAMPLE || layer(name).is_some());
        if !known {
            faults.add(&file, 1, "has no layer");
        }
    }
    faults.none();
}

#[test]
fn the_sample_upstream_shares_no_code_with_what_it_tests() {
    let rule = "sample imports error, net and config::Secret only, and outside of tests cli alone imports it";
    let mut faults = Faults::new(rule);
    for file in sources("src").into_iter().filter(|file| !file.is_test()) {
        let from = file.module();
        for import in file.imports() {
            let own = import.path == SAMPLE || import.path.starts_with("sample::");
            let allowed = SAMPLE_MAY.iter().any(|may| is_within(&import.path, may));
            if from == Some(SAMPLE) && !own && !allowed {
                faults.add(&file, import.line, &format!("sample imports {}", import.path));
            } else if own && !matches!(from, Some("cli" | SAMPLE)) {
                faults.add(&file, import.line, "imports sample");
            }
        }
    }
    faults.none();
}

#[test]
fn the_edge_never_learns_whether_an_owner_is_local() {
    let rule = "edge imports neither peer nor session::Registry: it has one way to a session, \
                route";
    let mut faults = Faults::new(rule);
    // Tests of the edge put a node together, which takes all its parts.
    for file in sources("src/edge").into_iter().filter(|file| !file.is_test()) {
        for import in file.imports() {
            let forbidden = ["peer", "session::Registry", "session::registry", "session::Handle"];
            if forbidden.iter().any(|path| is_within(&import.path, path)) {
                faults.add(&file, import.line, &format!("edge imports {}", import.path));
            }
        }
    }
    faults.none();
}

#[test]
fn external_crates_stay_in_their_homes() {
    let rule = "outside of tests sqlx is named in store only, tonic and prost in peer and \
                telemetry, OpenTelemetry in telemetry, hashring in ring, clap in cli, tungstenite in sample, tokio::net and turmoil in net";
    let mut faults = Faults::new(rule);
    for file in sources("src").into_iter().filter(|file| !file.is_test()) {
        let Some(module) = file.module() else { continue };
        for path in file.external() {
            let home = HOMES.iter().find(|(name, _)| path.root().starts_with(name));
            let socket = is_within(&path.path, "tokio::net") && module != "net";
            if socket || home.is_some_and(|(_, homes)| !homes.contains(&module)) {
                faults.add(&file, path.line, &format!("{module} names {}", path.path));
            }
        }
    }
    faults.none();
}

#[test]
fn rules_stay_pure() {
    let rule = "pure modules name no runtime, socket, file, environment or database; of tokio \
                only the type time::Instant";
    let mut faults = Faults::new(rule);
    let mut seen = vec![false; PURE.len()];
    for file in sources("src").into_iter().filter(|file| !file.is_test()) {
        let name = file.within("src");
        let Some(at) = PURE
            .iter()
            .position(|pure| name == *pure || (pure.ends_with('/') && name.starts_with(pure)))
        else {
            continue;
        };
        seen[at] = true;
        for path in file.external() {
            let impure = IMPURE.iter().any(|root| is_within(&path.path, root));
            if impure && !is_within(&path.path, INSTANT) {
                faults.add(&file, path.line, &format!("names {}", path.path));
            }
        }
    }
    for (pure, seen) in PURE.iter().zip(seen) {
        // A folder is what a file may be split into one day.
        assert!(seen || pure.ends_with('/'), "src/{pure} is gone: correct PURE of this test");
    }
    faults.none();
}

#[test]
fn files_stay_short_enough_to_be_read() {
    let mut faults = Faults::new(&format!("a file has at most {MAX_LINES} lines without tests"));
    for file in sources("src") {
        let lines = file.lines_without_tests();
        let excused = LONG.iter().find(|(name, _)| *name == file.within("src"));
        match excused {
            Some((name, reason)) => {
                assert!(!reason.is_empty(), "{name} needs a reason");
                assert!(lines > MAX_LINES, "{name} is short again: strike it off LONG");
            }
            None if lines > MAX_LINES => faults.add(&file, lines, &format!("{lines} lines")),
            None => {}
        }
    }
    faults.none();
}

#[test]
fn nothing_is_left_for_later() {
    let mut faults = Faults::new("no todo!, unimplemented! or dbg!, also in tests");
    for root in ["src", "tests", "benches", "examples", "simulation", "fuzz"] {
        for file in sources(root) {
            for (at, line) in file.code.lines().enumerate() {
                for word in ["todo!", "unimplemented!", "dbg!"] {
                    if word_at(line, word).is_some() {
                        faults.add(&file, at + 1, word);
                    }
                }
            }
        }
    }
    faults.none();
}

#[test]
fn every_table_and_sequence_of_postgres_says_what_it_is_for() {
    let mut faults = Faults::new("each migration comments on every table and sequence it makes");
    let migrations = files("migrations/postgres", &["sql"]);
    assert!(!migrations.is_empty(), "no migrations found");
    for path in migrations {
        let file = Source::read(path);
        for (at, line) in file.text.lines().enumerate() {
            for kind in ["TABLE", "SEQUENCE"] {
                let Some(rest) = line.strip_prefix(&format!("CREATE {kind} ")) else { continue };
                let name: String = rest.chars().take_while(|c| is_word(*c)).collect();
                if !file.text.contains(&format!("COMMENT ON {kind} {name} IS ")) {
                    faults.add(&file, at + 1, &format!("no COMMENT ON {kind} {name}"));
                }
            }
        }
    }
    faults.none();
}

#[test]
fn documents_hold_everywhere_and_their_links_lead_somewhere() {
    let rule = "documents name no directory of somebody's machine, and relative links exist";
    let mut faults = Faults::new(rule);
    let mut documents = files("docs", &["md", "toml"]);
    documents.extend(files_of(&root(), &["md"]));
    for path in documents {
        let file = Source::read(path);
        for (at, line) in file.text.lines().enumerate() {
            for home in ["/home/", "/root/", "/Users/", "/work/"] {
                // Within a URL or a longer path it is another matter.
                let own = |at: usize| !line[..at].ends_with(|c: char| is_word(c) || c == '}');
                if line.match_indices(home).any(|(at, _)| own(at)) {
                    faults.add(&file, at + 1, &format!("a path under {home}"));
                }
            }
            for link in links(line) {
                let target = file.path.parent().unwrap_or(Path::new("")).join(link);
                if !target.exists() {
                    faults.add(&file, at + 1, &format!("dead link {link}"));
                }
            }
        }
    }
    faults.none();
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn may_import(from: &str, to: &str) -> bool {
    match (layer(from), layer(to)) {
        (Some(from), Some(to)) => to < from,
        // The sample has a rule of its own.
        _ => to == SAMPLE,
    }
}

/// Whether `path` is `root` or lies in it.
fn is_within(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Targets of a line's Markdown links that are files of this repository.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split(')').next()?.split('#').next()?;
        let here = !target.is_empty() && !target.contains(':') && !target.contains(' ');
        here.then_some(target)
    })
}

/// Violations of one rule.
struct Faults {
    rule: String,
    found: String,
}

impl Faults {
    fn new(rule: &str) -> Self {
        Self { rule: rule.to_owned(), found: String::new() }
    }

    fn add(&mut self, file: &Source, line: usize, what: &str) {
        let name = file.path.strip_prefix(root()).unwrap_or(&file.path).display();
        writeln!(self.found, "  {name}:{line}: {what}").unwrap();
    }

    fn none(self) {
        assert!(self.found.is_empty(), "rule: {}\n{}", self.rule, self.found);
    }
}

/// A path of the code, `a::b::C`, and where it stands.
struct Import {
    path: String,
    line: usize,
}

impl Import {
    fn root(&self) -> &str {
        self.path.split("::").next().unwrap_or_default()
    }
}

struct Source {
    path: PathBuf,
    text: String,
    /// The text with comments and literals blanked, line for line.
    code: String,
}

impl Source {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap();
        let rust = path.extension().is_some_and(|it| it == "rs");
        let code = if rust { blank(&text) } else { String::new() };
        Self { path, text, code }
    }

    fn within(&self, dir: &str) -> String {
        let name = self.path.strip_prefix(root().join(dir)).unwrap();
        name.to_str().unwrap().to_owned()
    }

    /// The top-level module; none for the crate roots.
    fn module(&self) -> Option<&str> {
        let name = self.path.strip_prefix(root().join("src")).ok()?;
        let first = name.iter().next()?.to_str()?;
        let module = first.strip_suffix(".rs").unwrap_or(first);
        (!matches!(module, "lib" | "main")).then_some(module)
    }

    /// What follows `crate::`, and `super::` chains that leave the top-level module.
    fn imports(&self) -> Vec<Import> {
        let mut found = Vec::new();
        for (at, _) in self.code.match_indices("crate::") {
            if !self.code[..at].ends_with(|c: char| is_word(c) || c == ':' || c == '$') {
                self.expand(String::new(), at + "crate::".len(), &mut found);
            }
        }
        let name = self.within("src");
        let depth = name.matches('/').count() + usize::from(!name.ends_with("mod.rs"));
        for (at, _) in self.code.match_indices("super::") {
            if self.code[..at].ends_with(|c: char| is_word(c) || c == ':') {
                continue;
            }
            let rest = self.code[at..].trim_start_matches("super::");
            let supers = (self.code.len() - at - rest.len()) / "super::".len();
            let next: String = rest.chars().take_while(|c| is_word(*c)).collect();
            if supers >= depth && layer(&next).is_some() {
                let start = self.code.len() - rest.len();
                self.expand(String::new(), start, &mut found);
            }
        }
        found
    }

    /// Paths that begin with a name that nothing precedes: external crates, mostly.
    fn external(&self) -> Vec<Import> {
        let mut found = Vec::new();
        let mut last = ' ';
        for (at, c) in self.code.char_indices() {
            let begins = is_word(c) && !is_word(last) && !matches!(last, ':' | '.' | '$');
            // `use ::http` names an external crate as well.
            let rooted = self.code[..at].ends_with("::")
                && !self.code[..at - 2].ends_with(|c: char| is_word(c) || c == '>');
            if is_word(c) && (begins || (rooted && !is_word(last))) {
                let name: String = self.code[at..].chars().take_while(|c| is_word(*c)).collect();
                let rest = &self.code[at + name.len()..];
                let used = self.code[..at].trim_end().ends_with("use");
                if (rest.starts_with("::") || used) && !matches!(&*name, "crate" | "self" | "super")
                {
                    self.expand(String::new(), at, &mut found);
                }
            }
            last = c;
        }
        found
    }

    /// Follows `a::b::{c, d::e}` from `at`, one import for each leaf; where it ends.
    fn expand(&self, prefix: String, at: usize, found: &mut Vec<Import>) -> usize {
        let line = self.code[..at].matches('\n').count() + 1;
        let (mut path, mut at) = (prefix, at);
        loop {
            let rest = &self.code[at..];
            if rest.starts_with('{') {
                at += 1;
                loop {
                    at += self.code[at..].len() - self.code[at..].trim_start().len();
                    match self.code[at..].chars().next() {
                        Some(',') => at += 1,
                        Some(c) if is_word(c) || c == '*' || c == '{' => {
                            at = self.expand(path.clone(), at, found);
                        }
                        Some('}') => return at + 1,
                        _ => return at,
                    }
                }
            }
            let name: String = rest.chars().take_while(|c| is_word(*c) || *c == '*').collect();
            at += name.len();
            if !name.is_empty() && name != "self" {
                path = if path.is_empty() { name } else { format!("{path}::{name}") };
            }
            let rest = &self.code[at..];
            if !rest.starts_with("::") || rest.starts_with("::<") {
                found.push(Import { path, line });
                // `as name`
                let alias = rest.trim_start().strip_prefix("as ");
                let skip = alias.map_or(0, |alias| {
                    let name = alias.chars().take_while(|c| is_word(*c)).count();
                    rest.len() - alias.len() + name
                });
                return at + skip;
            }
            at += 2;
        }
    }

    /// `tests.rs`, `codec_tests.rs`, or anything in `tests/`.
    fn is_test(&self) -> bool {
        self.within("src").split('/').any(|part| part.trim_end_matches(".rs").ends_with("tests"))
    }

    fn lines_without_tests(&self) -> usize {
        if self.is_test() {
            return 0;
        }
        let end = self.code.find("#[cfg(test)]\nmod tests {").unwrap_or(self.code.len());
        self.code[..end].lines().count()
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `word` stands by itself.
fn word_at(line: &str, word: &str) -> Option<usize> {
    line.match_indices(word).map(|(at, _)| at).find(|at| !line[..*at].ends_with(is_word))
}

/// Blanks comments, strings and characters; newlines stay.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// The end of the comment or literal that begins at `at`; `at` if none does.
fn literal_end(chars: &[char], at: usize) -> usize {
    let get = |at: usize| chars.get(at).copied().unwrap_or('\0');
    let find = |from: usize, end: &[char]| {
        let found = chars[from.min(chars.len())..].windows(end.len()).position(|it| it == end);
        found.map_or(chars.len(), |found| from + found)
    };
    let in_word = at > 0 && is_word(chars[at - 1]);
    match (get(at), get(at + 1)) {
        ('/', '/') => find(at, &['\n']),
        ('/', '*') => find(at + 2, &['*', '/']) + 2,
        ('r', '"' | '#') if !in_word || get(at.wrapping_sub(1)) == 'b' => {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            if get(at + 1 + hashes) != '"' {
                // A raw identifier.
                return at;
            }
            let mut end = vec!['"'];
            end.extend(vec!['#'; hashes]);
            find(at + 2 + hashes, &end) + end.len()
        }
        ('"', _) => {
            let mut end = at + 1;
            while end < chars.len() && chars[end] != '"' {
                end += if chars[end] == '\\' { 2 } else { 1 };
            }
            (end + 1).min(chars.len())
        }
        ('\'', '\\') => find(at + 3, &['\'']) + 1,
        ('\'', _) if get(at + 2) == '\'' => at + 3,
        _ => at,
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &str) -> Vec<Source> {
    let found = files(dir, &["rs"]);
    assert!(!found.is_empty(), "no sources in {dir}");
    found.into_iter().map(Source::read).collect()
}

/// All files below a directory, in order.
fn files(dir: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root().join(dir)];
    while let Some(dir) = left.pop() {
        found.extend(files_of(&dir, extensions));
        let entries = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        left.extend(entries.filter(|path| path.is_dir()));
    }
    found.sort();
    found
}

fn files_of(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let wanted = |path: &PathBuf| {
        let extension = path.extension().unwrap_or_default().to_str().unwrap_or_default();
        path.is_file() && extensions.contains(&extension)
    };
    entries.filter(wanted).collect()
}

#[test]
fn the_reader_of_this_test_reads_rust() {
    let text = r##"
use crate::{
    config::{Auth, Secret as S}, // crate::no
    wire,
};
pub use crate::store::Store;
const A: &str = "crate::no"; const B: char = '"'; const C: &str = r#"crate::"no"#;
fn f<'a>(x: &'a crate::link::Link) { crate::session::event::parse::<u8>(x, '\'') }
"##;
    let path = root().join("src/edge/x.rs");
    let file = Source { path, text: text.to_owned(), code: blank(text) };
    let mut paths: Vec<_> = file.imports().into_iter().map(|it| (it.line, it.path)).collect();
    paths.sort();
    let seen: Vec<_> = paths.iter().map(|(line, path)| (*line, path.as_str())).collect();
    assert_eq!(
        seen,
        [
            (3, "config::Auth"),
            (3, "config::Secret"),
            (4, "wire"),
            (6, "store::Store"),
            (8, "link::Link"),
            (8, "session::event::parse"),
        ]
    );
}
