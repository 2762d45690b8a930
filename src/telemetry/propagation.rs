//! The trace that a request belongs to, carried from client to edge to owner to upstream
//! in the words of W3C Trace Context.
//!
//! A node that exports nothing still passes on what it was given ([`context_of`]), so a
//! trace does not break where telemetry is off.

use http::{HeaderMap, HeaderName, HeaderValue};
pub use opentelemetry::Context;
use opentelemetry::{
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Longest `tracestate` that is passed on. The recommendation asks for at least 512.
const MAX_TRACESTATE: usize = 512;

/// A trace's place in the text form that peer messages carry. Empty: no trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceParent {
    pub traceparent: String,
    pub tracestate: String,
}

impl TraceParent {
    /// The text form of `context`.
    #[must_use]
    pub fn from_context(context: &Context) -> Self {
        let mut pair = Self::default();
        TraceContextPropagator::new().inject_context(context, &mut pair);
        pair
    }

    /// The context that the text names; an empty one if it is malformed.
    #[must_use]
    pub fn to_context(&self) -> Context {
        // From a fresh context: whatever is current here must not become the parent.
        TraceContextPropagator::new().extract_with_context(&Context::new(), self)
    }
}

impl Extractor for TraceParent {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => Some(&self.traceparent),
            "tracestate" if self.tracestate.len() <= MAX_TRACESTATE => Some(&self.tracestate),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

impl Injector for TraceParent {
    fn set(&mut self, key: &str, value: String) {
        match key {
            "traceparent" => self.traceparent = value,
            "tracestate" if value.len() <= MAX_TRACESTATE => self.tracestate = value,
            _ => {}
        }
    }
}

/// The parent that a request's headers name; an empty context if they name none.
#[must_use]
pub fn extract(headers: &HeaderMap) -> Context {
    let text = |name: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    TraceParent { traceparent: text("traceparent"), tracestate: text("tracestate") }.to_context()
}

/// Writes `context` into the headers of a request, over whatever a client had put there.
pub fn inject(context: &Context, headers: &mut HeaderMap) {
    let TraceParent { traceparent, tracestate } = TraceParent::from_context(context);
    for (name, text) in [("traceparent", traceparent), ("tracestate", tracestate)] {
        let name = HeaderName::from_static(name);
        headers.remove(&name);
        if let Ok(value) = HeaderValue::try_from(text)
            && !value.is_empty()
        {
            headers.insert(name, value);
        }
    }
}

/// Makes `span` a child of `parent`. Without an exporter there is nothing to do.
pub fn adopt(span: &Span, parent: &Context) {
    // The error says that no exporter is installed, or the span is disabled: both fine.
    let _ = span.set_parent(parent.clone());
}

/// What to pass on from within `span`: the span itself where it is recorded, else the
/// `parent` that it was given.
#[must_use]
pub fn context_of(span: &Span, parent: &Context) -> Context {
    let own = span.context();
    if own.span().span_context().is_valid() { own } else { parent.clone() }
}

/// Has `span` point at the span that `to` names, of another trace or of this one: what it
/// goes on with. Nothing happens where `to` names none.
pub fn link(span: &Span, to: &Context) {
    let to = to.span().span_context().clone();
    if to.is_valid() {
        span.add_link(to);
    }
}

/// The span of one request of a client, by the conventions for HTTP servers.
#[must_use]
pub fn request(method: &'static str, route: &str) -> Span {
    tracing::info_span!(
        parent: None,
        "request",
        otel.name = format_args!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = tracing::field::Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = tracing::field::Empty,
    )
}

/// How the request of [`request`] was answered.
pub fn answered(span: &Span, status: http::StatusCode) {
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        failed(span);
    }
}

/// Marks `span` as failed. The reason is in its other fields.
pub fn failed(span: &Span) {
    span.record("otel.status_code", "ERROR");
}

/// Makes `span` a child of what the headers name, and the headers name the span.
pub fn enter(span: &Span, headers: &mut HeaderMap) {
    let parent = extract(headers);
    adopt(span, &parent);
    inject(&context_of(span, &parent), headers);
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{TraceId, TracerProvider};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn headers(traceparent: &'static str) -> HeaderMap {
        HeaderMap::from_iter([
            (HeaderName::from_static("traceparent"), HeaderValue::from_static(traceparent)),
            (HeaderName::from_static("tracestate"), HeaderValue::from_static("vendor=1")),
        ])
    }

    fn trace_of(context: &Context) -> TraceId {
        context.span().span_context().trace_id()
    }

    #[test]
    fn a_trace_goes_from_client_to_edge_to_owner_to_upstream() {
        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let parent = extract(&headers(PARENT));
            let edge = tracing::info_span!("edge");
            adopt(&edge, &parent);
            let message = TraceParent::from_context(&context_of(&edge, &parent));
            assert!(message.traceparent.contains(TRACE));
            assert!(!message.traceparent.contains("b7ad6b7169203331"), "the edge is its own span");
            assert_eq!(message.tracestate, "vendor=1");

            let parent = message.to_context();
            let owner = tracing::info_span!("owner");
            adopt(&owner, &parent);
            let mut upstream = headers(PARENT);
            inject(&context_of(&owner, &parent), &mut upstream);
            assert_eq!(trace_of(&extract(&upstream)).to_string(), TRACE);
            assert_ne!(upstream["traceparent"], PARENT);
            assert_ne!(upstream["traceparent"], *message.traceparent);
        });
    }

    #[test]
    fn a_node_without_exporter_passes_on_what_it_was_given() {
        let parent = extract(&headers(PARENT));
        let mut onward = HeaderMap::new();
        inject(&context_of(&Span::none(), &parent), &mut onward);
        assert_eq!(onward["traceparent"], PARENT);
        assert_eq!(onward["tracestate"], "vendor=1");
    }

    #[test]
    fn nonsense_names_no_trace_and_is_not_passed_on() {
        for nonsense in ["", "00-xyz", "00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
            let context = extract(&headers(nonsense));
            assert!(!context.span().span_context().is_valid(), "{nonsense}");
            let mut onward = headers(nonsense);
            inject(&context, &mut onward);
            assert!(onward.is_empty(), "{nonsense}");
        }
    }

    #[test]
    fn an_endless_tracestate_is_left_behind() {
        let pair = TraceParent { traceparent: PARENT.into(), tracestate: "a=".repeat(400) };
        let context = pair.to_context();
        assert_eq!(trace_of(&context).to_string(), TRACE);
        assert_eq!(TraceParent::from_context(&context).tracestate, "");
    }
}
