//! The status page: one document without any resource of others.
//!
//! Script and style stand in the page and are named in the policy by their hashes, so that
//! nothing else can run in it, whatever a node id or a session key may contain.

use std::sync::LazyLock;

use axum::{
    http::{HeaderValue, header},
    response::{Html, IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("page/style.css");
/// One script of several files, from what the others use to what starts them.
const SCRIPT: &str = concat!(
    include_str!("page/text.js"),
    include_str!("page/ring.js"),
    include_str!("page/panels.js"),
    include_str!("page/story.js"),
    include_str!("page/app.js"),
);

/// The document, put together once.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    include_str!("page/index.html").replace("/*style*/", STYLE).replace("/*script*/", SCRIPT)
});

static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(SCRIPT),
        hash(STYLE)
    )
});

pub(super) async fn index() -> Response {
    let mut response = Html(DOCUMENT.as_str()).into_response();
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
