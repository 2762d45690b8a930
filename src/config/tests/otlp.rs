//! What is sent to a collector, by the standard variables.

use std::time::Duration;

use super::{
    super::{Collectors, OtlpProtocol},
    *,
};

const BASE: &str = "http://collector:4317";

fn given(base: Option<&str>, pairs: &[(&str, &str)]) -> Given {
    let given = match base {
        Some(base) => Given::upstream().flag(Key::OtlpEndpoint, base),
        None => Given::upstream(),
    };
    pairs.iter().fold(given, |given, (name, value)| given.env(name, value))
}

fn of(base: Option<&str>, pairs: &[(&str, &str)]) -> Collectors {
    given(base, pairs).config().telemetry.otlp
}

#[test]
fn a_signal_is_sent_only_where_somebody_asked_for_it() {
    assert!(of(None, &[]).traces.is_none());
    assert!(of(Some(BASE), &[]).traces.is_some());
    assert!(of(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", BASE)]).logs.is_some());
    assert!(of(Some(BASE), &[("OTEL_SDK_DISABLED", "True")]).logs.is_none());
    let other = [("OTEL_METRICS_EXPORTER", "prometheus")];
    assert!(of(Some(BASE), &other).metrics.is_none());
    let both = [("OTEL_METRICS_EXPORTER", "prometheus, otlp")];
    assert!(of(Some(BASE), &both).metrics.is_some());
    assert!(of(Some(BASE), &[("OTEL_METRICS_EXPORTER", "none")]).traces.is_some());
    // Of what is not sent, nothing is asked.
    assert!(of(None, &[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]).traces.is_none());
}

#[test]
fn a_signals_own_endpoint_is_called_as_it_stands_and_a_base_gets_the_path_of_http() {
    let own = [("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "https://logs/in")];
    let sent = of(Some(BASE), &own);
    assert_eq!(sent.logs.unwrap().endpoint, "https://logs/in");
    assert_eq!(sent.traces.unwrap().endpoint, BASE);
    let alone = of(None, &own);
    assert!(alone.logs.is_some() && alone.traces.is_none());
    let http = [("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
    let traces = of(Some("http://collector:4318/"), &http).traces.unwrap();
    assert_eq!(traces.endpoint, "http://collector:4318/v1/traces");
    assert_eq!(traces.protocol, OtlpProtocol::Http);
}

#[test]
fn the_variable_of_a_signal_wins_over_the_one_for_all() {
    let pairs = [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "250"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
    ];
    let sent = of(Some(BASE), &pairs);
    let traces = sent.traces.unwrap();
    assert_eq!((traces.timeout, traces.gzip), (Duration::from_millis(250), true));
    assert_eq!(sent.logs.unwrap().timeout, Duration::from_secs(1));
}

#[test]
fn a_value_that_means_nothing_is_one_fault_that_shows_it_and_what_would_be_right() {
    for (name, value, right) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "grpc or http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0", "milliseconds above 0"),
        ("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "brotli", "gzip or none"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4317", "http, https"),
    ] {
        let got = format!("{name}: got {value:?}, expected ");
        given(Some(BASE), &[(name, value)]).refused_with(&[&got, right]);
    }
    let secure = "https://collector:4317";
    let pem = [("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nonexistent/ca.pem")];
    given(Some(secure), &pem).refused_with(&["CERTIFICATE", "/nonexistent/ca.pem", "PEM file"]);
}

#[test]
fn all_wrong_variables_are_said_at_once_and_no_password() {
    let pairs = [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://me:hunter2@collector"),
    ];
    let faults = given(Some(BASE), &pairs).flag(Key::LeaseTtl, "soon").faults();
    assert_eq!(faults.lines().count(), 4, "{faults}");
    assert!(!faults.contains("hunter2"), "{faults}");
}
