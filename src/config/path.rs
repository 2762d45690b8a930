//! Paths of routes, in the syntax of axum 0.8, and which of them exclude each other.

use super::Profile;

/// One segment of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    /// `{name}`
    One(String),
    /// `{*name}`, always the last.
    Rest(String),
}

/// A path that the router takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<Segment>);

impl Pattern {
    /// Reads `/rooms/{room}`.
    ///
    /// # Errors
    /// What would be right.
    pub fn parse(path: &str) -> Result<Self, String> {
        let expected = || {
            "a path such as \"/v1/responses\" or \"/rooms/{room}\": parts are literal, {name}, \
             or {*name} at the end, and no name stands twice"
                .to_owned()
        };
        let rest = path.strip_prefix('/').ok_or_else(expected)?;
        if rest.is_empty() {
            return Ok(Self(vec![Segment::Literal(String::new())]));
        }
        let mut pattern = Self(Vec::new());
        let count = rest.split('/').count();
        for (index, part) in rest.split('/').enumerate() {
            let segment = segment(part).ok_or_else(expected)?;
            let repeated = match &segment {
                Segment::Literal(_) => false,
                Segment::One(name) => pattern.has(name),
                Segment::Rest(name) => pattern.has(name) || index + 1 != count,
            };
            if repeated {
                return Err(expected());
            }
            pattern.0.push(segment);
        }
        Ok(pattern)
    }

    /// Whether a part is called `name`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.named().any(|known| known == name)
    }

    /// Names of the parts, for a fault.
    #[must_use]
    pub fn names(&self) -> String {
        let names: Vec<_> = self.named().collect();
        if names.is_empty() { "it has no {name} part".into() } else { names.join(", ") }
    }

    fn named(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|segment| match segment {
            Segment::Literal(_) => None,
            Segment::One(name) | Segment::Rest(name) => Some(name.as_str()),
        })
    }

    /// Whether the router could not tell the two apart. A literal part beside a variable
    /// one is fine: the literal wins.
    fn ambiguous_with(&self, other: &Self) -> bool {
        for (one, two) in self.0.iter().zip(&other.0) {
            match (one, two) {
                (Segment::Literal(one), Segment::Literal(two)) if one == two => {}
                (Segment::Literal(_), _) | (_, Segment::Literal(_)) => return false,
                (Segment::One(_), Segment::One(_)) => {}
                (Segment::Rest(_), _) | (_, Segment::Rest(_)) => return true,
            }
        }
        self.0.len() == other.0.len()
    }

    /// Whether every request for this path also fits `other`'s stored responses
    /// (`other/{id}`).
    fn is_stored_response_of(&self, other: &Self) -> bool {
        let mut stored = other.clone();
        stored.0.push(Segment::One("response_id".into()));
        self.0.len() == stored.0.len()
            && self.0.iter().zip(&stored.0).all(|(one, two)| match (one, two) {
                (Segment::Literal(one), Segment::Literal(two)) => one == two,
                _ => true,
            })
            || stored.ambiguous_with(self)
    }
}

fn segment(part: &str) -> Option<Segment> {
    if let Some(name) = part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
        let (rest, name) = name.strip_prefix('*').map_or((false, name), |name| (true, name));
        let sound = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        return sound
            .then(|| if rest { Segment::Rest(name.into()) } else { Segment::One(name.into()) });
    }
    // What RFC 3986 allows in a segment, less what the router gives a meaning to.
    let literal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;=:@".contains(&byte);
    // A leading ':' or '*' is the router's former syntax, which it refuses.
    let former = part.starts_with([':', '*']);
    let dots = part == "." || part == "..";
    let sound = !part.is_empty() && !dots && !former && part.bytes().all(literal);
    sound.then(|| Segment::Literal(part.into()))
}

/// What would be right instead of a path that collides with one that is taken.
#[must_use]
pub fn conflict(
    pattern: &Pattern,
    profile: Profile,
    taken: &[(Pattern, Profile)],
) -> Option<String> {
    for (other, other_profile) in taken {
        if pattern.ambiguous_with(other) {
            return Some("a path that no other route covers".into());
        }
        let stored = |responses: Profile, owner: &Pattern, guest: &Pattern| {
            responses == Profile::Responses && guest.is_stored_response_of(owner)
        };
        if stored(*other_profile, other, pattern) || stored(profile, pattern, other) {
            return Some(
                "a path that is not directly under a responses route, where stored responses are"
                    .into(),
            );
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_router_takes_every_path_that_is_accepted() {
        for path in ["/", "/v1/responses", "/rooms/{room}", "/x/{a}/{*rest}", "/a.b~c:d"] {
            assert!(Pattern::parse(path).is_ok(), "{path}");
            let _ = axum::Router::<()>::new().route(path, axum::routing::get(|| async {}));
        }
        for path in [
            "", "rooms", "/a//b", "/a/", "/{a", "/a{b}", "/{}", "/{*r}/x", "/{a}/{a}", "/a?b",
            "/a#b", "/:a", "/*a", "/..", "/a b",
        ] {
            assert!(Pattern::parse(path).is_err(), "{path}");
        }
    }

    #[test]
    fn paths_exclude_each_other_where_the_router_could_not_choose() {
        let conflict = |one: &str, two: &str| {
            let taken = [(Pattern::parse(one).unwrap(), Profile::Opaque)];
            super::conflict(&Pattern::parse(two).unwrap(), Profile::Opaque, &taken).is_some()
        };
        assert!(conflict("/a", "/a"));
        assert!(conflict("/rooms/{a}", "/rooms/{b}"));
        assert!(conflict("/rooms/{a}", "/rooms/{*b}"));
        assert!(!conflict("/rooms/{a}", "/rooms/lobby"));
        assert!(!conflict("/rooms/{a}", "/rooms/{a}/chat"));
        assert!(!conflict("/a", "/b"));
    }

    #[test]
    fn stored_responses_keep_their_place_under_a_responses_route() {
        let responses = [(Pattern::parse("/v1/responses").unwrap(), Profile::Responses)];
        for (path, refused) in
            [("/v1/responses/{x}", true), ("/v1/responses/x", true), ("/v1/models", false)]
        {
            let pattern = Pattern::parse(path).unwrap();
            assert_eq!(
                conflict(&pattern, Profile::Opaque, &responses).is_some(),
                refused,
                "{path}"
            );
        }
    }
}
