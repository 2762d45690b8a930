//! Certificates of a ring, made by the openssl program.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// Has openssl make a key of its own, without a password.
const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// An authority, and what it has signed.
pub struct Authority {
    dir: TempDir,
}

/// Files of one node.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let own = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (key, cert) = (own("ca.key"), own("ca.pem"));
        let files = ["-keyout", &key, "-out", &cert];
        openssl(
            &[&["req", "-x509", "-subj", "/CN=ring", "-days", "30"], &NEW_KEY[..], &files].concat(),
        );
        Self { dir }
    }

    /// The authority's own certificate.
    pub fn pem(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate for these subject alternative names, good for so many days from now.
    pub fn sign(&self, file: &str, names: &str, days: i32) -> Certificate {
        let own = |name: String| self.dir.path().join(name).to_str().unwrap().to_owned();
        let (key, csr) = (own(format!("{file}.key")), own(format!("{file}.csr")));
        let (extensions, cert) = (own(format!("{file}.ext")), own(format!("{file}.pem")));
        let files = ["-keyout", &key, "-out", &csr];
        openssl(&[&["req", "-subj", "/CN=node"], &NEW_KEY[..], &files].concat());
        let text = format!(
            "subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n"
        );
        fs::write(&extensions, text).unwrap();
        let (ca, ca_key) = (own("ca.pem".into()), own("ca.key".into()));
        openssl(&[
            "x509",
            "-req",
            "-in",
            &csr,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-days",
            &days.to_string(),
            "-extfile",
            &extensions,
            "-out",
            &cert,
        ]);
        Certificate { cert: cert.into(), key: key.into() }
    }
}

impl Certificate {
    /// Copies them over those of another place, as a secret's volume does: key and all.
    pub fn install(&self, to: &Self) {
        replace(&self.key, &to.key);
        replace(&self.cert, &to.cert);
    }
}

/// Puts a file in the place of another in one step.
pub fn replace(from: &Path, to: &Path) {
    let beside = to.with_extension("new");
    fs::copy(from, &beside).unwrap();
    fs::rename(&beside, to).unwrap();
}

fn openssl(args: &[&str]) {
    let output = Command::new("openssl").args(args).output().expect("the openssl program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
