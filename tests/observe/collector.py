"""A collector that keeps what it is sent: OTLP over gRPC and over HTTP, spans, metrics and logs.

Passes spans on to a real backend where one is given. Needs `grpcio` and `opentelemetry-proto`.
"""

import gzip
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc


def plain(attributes):
    """Attributes as a dictionary."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


class Collector:
    def __init__(self, backend=None):
        self.lock = threading.Lock()
        self.spans, self.logs, self.points = [], [], {}
        self.headers = []
        self.backend = trace_grpc.TraceServiceStub(grpc.insecure_channel(backend)) if backend else None
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        trace_grpc.add_TraceServiceServicer_to_server(Service(self.on_spans, trace.ExportTraceServiceResponse, self), self.server)
        logs_grpc.add_LogsServiceServicer_to_server(Service(self.on_logs, logs.ExportLogsServiceResponse, self), self.server)
        metrics_grpc.add_MetricsServiceServicer_to_server(Service(self.on_metrics, metrics.ExportMetricsServiceResponse, self), self.server)
        self.grpc = f"http://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()
        self.web = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.http = f"http://127.0.0.1:{self.web.server_port}"
        threading.Thread(target=self.web.serve_forever, daemon=True).start()

    def on_spans(self, request):
        if self.backend:
            self.backend.Export(request, timeout=10)
        with self.lock:
            for group in request.resource_spans:
                resource = plain(group.resource.attributes)
                for scope in group.scope_spans:
                    for span in scope.spans:
                        self.spans.append({
                            "node": resource["service.instance.id"], "resource": resource,
                            "name": span.name, "kind": span.kind, "trace": span.trace_id.hex(),
                            "id": span.span_id.hex(), "parent": span.parent_span_id.hex(),
                            "links": [link.span_id.hex() for link in span.links],
                            "events": [event.name for event in span.events],
                            "attributes": plain(span.attributes)})

    def on_logs(self, request):
        with self.lock:
            for group in request.resource_logs:
                resource = plain(group.resource.attributes)
                for scope in group.scope_logs:
                    for record in scope.log_records:
                        self.logs.append({
                            "node": resource["service.instance.id"], "severity": record.severity_text,
                            "body": record.body.string_value, "trace": record.trace_id.hex(),
                            "span": record.span_id.hex(), "attributes": plain(record.attributes)})

    def on_metrics(self, request):
        with self.lock:
            for group in request.resource_metrics:
                node = plain(group.resource.attributes)["service.instance.id"]
                for scope in group.scope_metrics:
                    for metric in scope.metrics:
                        self.points[node, metric.name] = metric

    def stop(self):
        self.server.stop(0)
        self.web.shutdown()


class Service:
    """One of OTLP's three services."""

    def __init__(self, on, answer, collector):
        self.on, self.answer, self.collector = on, answer, collector

    def Export(self, request, context):  # noqa: N802 (the name is OTLP's)
        self.collector.headers.append(dict(context.invocation_metadata()))
        self.on(request)
        return self.answer()


def handler(collector):
    kinds = {"/v1/traces": (trace.ExportTraceServiceRequest, collector.on_spans),
             "/v1/logs": (logs.ExportLogsServiceRequest, collector.on_logs),
             "/v1/metrics": (metrics.ExportMetricsServiceRequest, collector.on_metrics)}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):  # noqa: N802 (the name is the library's)
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            kind, on = kinds[self.path]
            on(kind.FromString(body))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    return Handler
