//! Every reader of bytes from outside, with what must hold of whatever it makes of them. The
//! fuzzer drives these (`fuzz/`), and the tests below replay what it found.

use crate::{config, edge, peer, wire};

/// Reads bytes of which nothing is known; panics where something is wrong.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("answer", wire::fuzz::answer),
    ("api_keys", config::fuzz::keys),
    ("batch", wire::fuzz::batch),
    ("body", edge::fuzz::body),
    ("config", config::fuzz::file),
    ("credential", edge::fuzz::credential),
    ("events", edge::fuzz::events),
    ("frames", wire::fuzz::frames),
    ("jwks", edge::fuzz::jwks),
    ("keys", edge::fuzz::keys),
    ("peer_calls", peer::fuzz::calls),
    ("peer_stream", peer::fuzz::stream),
    ("resume", edge::fuzz::resume),
    ("token", edge::fuzz::token),
    ("upgrade", wire::fuzz::upgrade),
];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::PathBuf};

    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    /// Changed copies of each entry.
    const COPIES: u64 = 100;

    fn fuzz() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    fn names(dir: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(fuzz().join(dir)).unwrap();
        entries
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect()
    }

    /// What a fuzzer would do first: bits, bytes and pieces changed.
    fn mutate(rng: &mut StdRng, data: &mut Vec<u8>) {
        for _ in 0..rng.random_range(1..5) {
            let at = rng.random_range(0..=data.len());
            match rng.random_range(0..4) {
                0 => data.insert(at, rng.random()),
                1 => data.truncate(at),
                _ if at == data.len() => data.extend_from_within(at / 2..),
                2 => data[at] ^= 1 << rng.random_range(0..8),
                _ => data[at] = *[0, 0x7F, 0x80, 0xFF, b'\n', b'"'].get(at % 6).unwrap(),
            }
        }
    }

    #[test]
    fn every_target_has_a_program_and_a_corpus() {
        let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names("fuzz_targets"), targets);
        assert_eq!(names("corpus"), targets);
        let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
        for target in targets {
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
        }
    }

    #[test]
    fn what_fuzzing_found_stays_found() {
        for (name, target) in TARGETS {
            let mut entries: Vec<_> = fs::read_dir(fuzz().join("corpus").join(name))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            entries.sort();
            assert!(!entries.is_empty(), "{name} has no corpus");
            for entry in entries {
                println!("{}", entry.display());
                let data = fs::read(&entry).unwrap();
                target(&data);
                for seed in 0..COPIES {
                    let mut copy = data.clone();
                    mutate(&mut StdRng::seed_from_u64(seed), &mut copy);
                    println!("seed {seed}");
                    target(&copy);
                }
            }
        }
    }
}
