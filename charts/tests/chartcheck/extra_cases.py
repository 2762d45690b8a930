"""Values beyond the overlays: what they leave out."""

from .render import Case

INLINE = {
    "source": "inline",
    "inline": {"databaseUrl": "postgres://u@db/ringspan", "peerToken": "not-a-secret-0123456789"},
}

KEEPING = {
    "route": [
        {"path": "/v1/responses", "profile": "responses", "upstream": "openai", "continuity": "database"}
    ]
}
HISTORY = {**INLINE, "inline": {**INLINE["inline"], "historyKey": "A" * 43 + "="}}

CASES = [
    Case("one node, no ring", {"replicas": 1, "ring": {"enabled": False}, "peer": {"auth": "none"}}),
    Case("static members", {"ring": {"staticMembers": True, "ordinalsStart": 5}}),
    Case("own mTLS Secret", {"peer": {"auth": "mtls", "mtls": {"existingSecret": "peers"}}}),
    Case("plaintext peers", {"peer": {"auth": "none", "allowPlaintext": True}}),
    Case("inline secrets, Job", {"secrets": INLINE, "migrations": {"strategy": "job"}}),
    Case("conversations in the database", {"config": KEEPING, "secrets": HISTORY}),
    Case("mounted secrets", {"config": KEEPING, "secrets": {**HISTORY, "mount": True}}),
    Case(
        "a mounted password",
        {"database": {"external": {"useUrl": False, "host": "h"}}, "secrets": {"mount": True}},
    ),
    Case(
        "a mounted password of a trial database",
        {
            "database": {"mode": "dev", "dev": {"acknowledgeDataLoss": True}},
            "secrets": {
                "source": "inline", "mount": True,
                "inline": {"databasePassword": "not-a-secret", "peerToken": "not-a-secret-0123456789"},
            },
        },
    ),
    Case(
        "a token for the admin listener",
        {
            "admin": {"token": True},
            "secrets": {**INLINE, "inline": {**INLINE["inline"], "adminToken": "not-a-secret-0123456789"}},
        },
    ),
    Case("a mounted address of a Cluster", {"database": {"mode": "cloudnativepg"}, "secrets": {"mount": True}}),
    Case(
        "all that a Secret of one's own may hold",
        {
            "config": KEEPING,
            "admin": {"token": True},
            "database": {"external": {"direct": {"enabled": True}}},
            "secrets": {"env": [{"name": "OPENAI_API_KEY", "key": "openai"}]},
        },
    ),
    Case(
        "a trial database with a Secret of one's own",
        {"database": {"mode": "dev", "dev": {"acknowledgeDataLoss": True}}, "secrets": {"mount": True}},
    ),
    Case(
        "credentials that are being replaced",
        {
            "config": KEEPING,
            "secrets": {
                "source": "inline",
                "inline": {
                    "databaseUrl": "postgres://u@db/ringspan",
                    "peerToken": "not-a-secret-0123456789,not-a-secret-9876543210",
                    "historyKey": "A" * 43 + "=, " + "B" * 42 + "A=\n",
                },
            },
        },
    ),
    Case("migrations elsewhere", {"migrations": {"strategy": "external"}}),
    Case("no policy, no test", {"networkPolicy": {"enabled": False}, "test": {"enabled": False}}),
    Case(
        "an existing Cluster",
        {"database": {"mode": "cloudnativepg", "cloudnativepg": {"create": False, "clusterName": "db"}}},
    ),
    Case(
        "everything that can be added",
        {
            "commonLabels": {"team": "x"},
            "commonAnnotations": {"note": "y"},
            "podLabels": {"a": "b"},
            "extraEnv": [{"name": "RUST_BACKTRACE", "value": "1"}],
            "extraEnvFrom": [{"configMapRef": {"name": "more"}}],
            "extraVolumes": [{"name": "v", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "v", "mountPath": "/v"}],
            "extraManifests": [
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "ns"}, "data": {"a": "b"}},
                "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-n\n  namespace: ns\ndata: {c: d}\n",
            ],
            "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": ["pull"]},
            "service": {
                "type": "LoadBalancer",
                "loadBalancerSourceRanges": ["192.0.2.0/24"],
                "externalTrafficPolicy": "Local",
                "sessionAffinity": "ClientIP",
            },
            "timing": {"preStopSleepSeconds": 5, "leaseMargin": "4s"},
            "rollout": {"manualToken": "2", "reloader": True},
            "metrics": {"podMonitor": {"enabled": True}},
            "serviceAccount": {"annotations": {"role": "r"}},
            "config": {"max_clients": 5000, "max_message_bytes": "64MiB", "upstream_compression": True},
            "pdb": {"maxUnavailable": None, "minAvailable": "60%"},
            "test": {"bearer": {"secretName": "keys", "key": "bearer"}},
        },
    ),
    Case(
        "a very long name",
        {"nameOverride": "a-name-that-is-as-long-as-names-of-releases-may-be"},
    ),
]
