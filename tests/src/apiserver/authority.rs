//! A certificate authority of the lab, as kubeadm makes one for a cluster.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// The names that kubeadm puts into every apiserver's certificate, besides the node's own: see its `certs` phase.
const SERVER_NAMES: [&str; 5] =
    ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "10.96.0.1"];

/// Issues certificates and writes them, and the keys, as PEM files into one directory.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    /// Writes `ca.crt` into the directory, which is made.
    pub fn new(directory: &Path) -> Result<Self> {
        let mut params = named("kubernetes", Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let authority = Self { directory: directory.to_owned(), issuer };
        write(&authority.certificate(), &authority.issuer.pem())?;
        Ok(authority)
    }

    pub fn certificate(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// An apiserver's certificate: the node's name, kubeadm's fixed names, and `names` (addresses and certSANs).
    pub fn server(&self, node: &str, names: &[String]) -> Result<KeyFiles> {
        let all = [node].into_iter().chain(SERVER_NAMES).map(str::to_owned).chain(names.iter().cloned());
        let mut params = named("kube-apiserver", all.collect())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(node, &params)
    }

    pub fn client(&self, user: &str) -> Result<KeyFiles> {
        let mut params = named(user, Vec::new())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(user, &params)
    }

    fn issue(&self, file: &str, params: &CertificateParams) -> Result<KeyFiles> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let files = KeyFiles {
            certificate: self.directory.join(format!("{file}.crt")),
            key: self.directory.join(format!("{file}.key")),
        };
        write(&files.certificate, &certificate.pem())?;
        write(&files.key, &key.serialize_pem())?;
        Ok(files)
    }
}

fn named(common_name: &str, names: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
