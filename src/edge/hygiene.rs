//! What is wrong with a request whoever sends it and wherever it goes, and what a client may
//! not claim. Requests that two readers could understand in two ways are refused, not mended.

use http::{
    HeaderMap, HeaderName, HeaderValue, Request,
    header::{AUTHORIZATION, CONTENT_LENGTH, FORWARDED, TRANSFER_ENCODING, UPGRADE},
};

use super::key::decode;
use crate::error::{Code, Error, Result};

/// Headers by which a proxy speaks to what is behind it.
const CLAIMS: [&str; 3] = ["x-real-ip", "x-original-url", "x-rewrite-url"];

/// Refuses what no upstream should be asked to understand.
///
/// # Errors
/// `invalid_request` with the reason.
pub(super) fn check<B>(request: &Request<B>) -> Result<()> {
    let bad = |text: &str| Err(Error::new(Code::InvalidRequest, text.to_owned()));
    let headers = request.headers();
    // Other upgrades are offers that nobody takes here: Java's client makes one of `h2c` with
    // every request.
    if names_websocket(headers) && has_body(headers) {
        return bad("an upgrade has no body");
    }
    if headers.get_all(AUTHORIZATION).iter().count() > 1 {
        return bad("a request has one Authorization");
    }
    if has_dots(request.uri().path()) {
        return bad("the path has a part that is only dots");
    }
    Ok(())
}

/// Whether the connection ends with this request. One in chunks may have had a length as well,
/// which hyper takes out: for a proxy that went by the length, what follows the chunks is body.
pub(super) fn is_last<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(TRANSFER_ENCODING)
}

/// Whether anybody could take the request to ask for a WebSocket.
fn names_websocket(headers: &HeaderMap) -> bool {
    let name = b"websocket";
    let names = |value: &HeaderValue| {
        value.as_bytes().windows(name.len()).any(|part| part.eq_ignore_ascii_case(name))
    };
    headers.get_all(UPGRADE).iter().any(names)
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|len| len.as_bytes() != b"0")
}

/// Whether an upstream could read a path as one above its own: routes are matched by what is
/// written, and so are the paths that pass beside them.
fn has_dots(path: &str) -> bool {
    parts(&plain(path)).any(|part| matches!(part, "." | ".."))
}

/// Whether an upstream that decodes paths or tidies them up could take `path` for one of these,
/// whose parts in braces stand for any.
pub(super) fn reads_as<'a>(path: &str, known: impl IntoIterator<Item = &'a str>) -> bool {
    let parts = tidied(path);
    let fits = |(part, named): (&String, &String)| named.starts_with('{') || part == named;
    known
        .into_iter()
        .map(tidied)
        .any(|named| parts.len() == named.len() && parts.iter().zip(&named).all(fits))
}

/// What is left of a path for a server that tidies it up: of one without dots, see [`has_dots`].
fn tidied(path: &str) -> Vec<String> {
    let plain = plain(path);
    // Encoded or not, for some servers it ends there.
    let path = plain.split(['?', '#', '\0']).next().unwrap_or_default();
    parts(path).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// A path without its encoding. Twice: what stands before an upstream may decode as well.
fn plain(path: &str) -> String {
    decode(&decode(path)).to_ascii_lowercase()
}

/// The parts of a plain path as the most lenient server could read them. Behind a semicolon are
/// parameters, which some leave out.
fn parts(plain: &str) -> impl Iterator<Item = &str> {
    let heads =
        plain.split(['/', '\\']).filter_map(|part| part.split([';', '?', '#', '\0']).next());
    heads.map(str::trim)
}

/// Takes out what only a proxy may say. ringspan cannot tell whether one stands before it.
pub(super) fn remove_claims(headers: &mut HeaderMap) {
    let claims = |name: &&HeaderName| {
        **name == FORWARDED
            || name.as_str().starts_with("x-forwarded-")
            || CLAIMS.contains(&name.as_str())
    };
    let found: Vec<_> = headers.keys().filter(claims).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_refused_beside_whatever_could_be_read_as_the_offer_of_a_websocket() {
        let answers = |upgrade: &str| {
            let request = Request::post("/v1/responses").header(CONTENT_LENGTH, "2");
            check(&request.header(UPGRADE, "h2c").header(UPGRADE, upgrade).body(()).unwrap())
        };
        for upgrade in ["websocket", "WebSocket", "h2c, websocket", "x,websocket/13", "\twebsocket"]
        {
            assert_eq!(answers(upgrade).unwrap_err().code, Code::InvalidRequest, "{upgrade:?}");
        }
        answers("h2c").unwrap();
    }

    #[test]
    fn a_path_that_leads_upwards_is_seen_however_it_is_written() {
        for path in [
            "/v1/../admin",
            "/v1/%2E%2e/x",
            "/v1/%2e./x",
            "/a/..%2Fb",
            "/a\\..\\b",
            "/.",
            "/v1/%252e%252e/admin",
            "/v1/x/%252E./responses",
            "/v1/..%255Cadmin",
            "/v1/..;/admin",
            "/v1/..%3Bx=1/admin",
            "/v1/..%20/admin",
            "/v1/..%00",
            "/v1/..%3Fx",
            "/v1/a%3F/../admin",
        ] {
            assert!(has_dots(path), "{path}");
        }
        for path in [
            "/v1/responses",
            "/rooms/a..b",
            "/rooms/...",
            "/rooms/..a",
            "/rooms/a..;v=1",
            "/rooms/a;b=..",
            "/rooms/a%3F..",
            "/rooms/a%20.",
            "/rooms/.well-known",
            "/%25",
            "//",
            "/",
        ] {
            assert!(!has_dots(path), "{path}");
        }
    }

    #[test]
    fn a_path_that_could_be_read_as_a_routes_is_seen_however_it_is_written() {
        for path in [
            "/v1/%72esponses",
            "/v1/%2572esponses",
            "/v1/responses/",
            "/v1//responses",
            "/v1/%2Fresponses",
            "/v1%5Cresponses",
            "/v1/responses;x=1",
            "/v1/responses%3Fx",
            "/v1/responses%00",
            "/v1/responses%20",
            "/v1/Responses",
        ] {
            assert!(reads_as(path, ["/v1/responses"]), "{path}");
        }
        assert!(reads_as("/acme//responses", ["/{tenant}/responses"]));
        for path in [
            "/v1/models",
            "/v1/models/",
            "/v1/models/a%2Fresponses",
            "/v1/responses/resp_1",
            "/v1/responses/a%3Ab/cancel",
            "/v2/responses",
            "/v1",
        ] {
            assert!(!reads_as(path, ["/v1/responses"]), "{path}");
        }
    }
}
