//! Which endpoint of its upstream a session goes to. Pure.
//!
//! Weighted rendezvous: every endpoint has a score for a session, and the session goes to the
//! best. So all nodes agree without a word, an endpoint that fails moves only its own sessions,
//! and they are spread over the others by weight.

use xxhash_rust::xxh3::Xxh3;

/// Numbers of the endpoints, best first for this key. A weight of zero counts as one.
#[must_use]
pub fn ranked<'a>(key: &[u8], endpoints: impl Iterator<Item = (&'a str, u32)>) -> Vec<usize> {
    let scored = endpoints.map(|(name, weight)| score(key, name, weight));
    let mut ranked: Vec<(f64, usize)> = scored.enumerate().map(|(at, score)| (score, at)).collect();
    ranked.sort_by(|one, other| one.0.total_cmp(&other.0));
    ranked.into_iter().map(|(_, at)| at).collect()
}

/// The time until an event of rate `weight`: the earliest of several is each one's with a
/// probability in proportion to its weight.
fn score(key: &[u8], name: &str, weight: u32) -> f64 {
    let mut hash = Xxh3::new();
    hash.update(&(name.len() as u64).to_be_bytes());
    hash.update(name.as_bytes());
    hash.update(key);
    // The upper half is uniform enough, and every u32 has an f64 of its own.
    let upper = u32::try_from(hash.digest() >> 32).unwrap_or(u32::MAX);
    let uniform = (f64::from(upper) + 0.5) / (f64::from(u32::MAX) + 1.0);
    -uniform.ln() / f64::from(weight.max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POOL: [(&str, u32); 4] = [("a", 100), ("b", 100), ("c", 200), ("d", 100)];

    fn first(key: u64, endpoints: &[(&'static str, u32)]) -> &'static str {
        endpoints[ranked(&key.to_be_bytes(), endpoints.iter().copied())[0]].0
    }

    #[test]
    fn each_endpoint_gets_its_share_of_sessions_by_weight() {
        let mut counts = std::collections::HashMap::<_, u32>::new();
        for key in 0..50_000 {
            *counts.entry(first(key, &POOL)).or_default() += 1;
        }
        for (name, weight) in POOL {
            let share = f64::from(counts[name]) / 50_000.0;
            let fair = f64::from(weight) / 500.0;
            assert!((share - fair).abs() < 0.01, "{name}: {share} instead of {fair}");
        }
    }

    #[test]
    fn the_choice_is_the_same_in_every_release() {
        let chosen: String = (0..32).map(|key| first(key, &POOL)).collect();
        assert_eq!(chosen, GOLDEN);
    }

    /// Sessions would change their endpoints in a rollout if this changed.
    const GOLDEN: &str = "adcaddcaccccccdccbdbccbdddccabca";

    proptest! {
        #[test]
        fn an_endpoint_that_fails_moves_its_own_sessions_and_no_others(key: u64, gone in 0_usize..4) {
            let mut left = POOL.to_vec();
            let lost = left.remove(gone).0;
            let before = first(key, &POOL);
            if before == lost {
                let second = ranked(&key.to_be_bytes(), POOL.iter().copied())[1];
                prop_assert_eq!(first(key, &left), POOL[second].0);
            } else {
                prop_assert_eq!(first(key, &left), before);
            }
        }

        #[test]
        fn the_order_in_the_file_does_not_matter(key: u64) {
            let mut turned = POOL;
            turned.reverse();
            prop_assert_eq!(first(key, &POOL), first(key, &turned));
        }

        #[test]
        fn every_endpoint_is_ranked_once(key: Vec<u8>, weights in prop::collection::vec(0_u32..500, 1..9)) {
            let names: Vec<String> = (0..weights.len()).map(|n| n.to_string()).collect();
            let pool = names.iter().map(String::as_str).zip(weights.iter().copied());
            let mut order = ranked(&key, pool);
            order.sort_unstable();
            prop_assert_eq!(order, (0..weights.len()).collect::<Vec<_>>());
        }
    }
}
