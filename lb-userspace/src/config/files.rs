//! Files that a configuration names: there, readable, and holding what they should.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};
use rustls::{
    RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

use super::report::{Mistakes, Span};

/// Nothing that a configuration is made of comes near this.
const LARGEST: u64 = 1 << 20;

/// A file, and the place that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileUse {
    pub(super) path: PathBuf,
    pub(super) at: Span,
    pub(super) content: Content,
}

/// What a file should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Authorities,
    /// As above, in a file that only the default names.
    DefaultAuthorities,
    /// A certificate for the key in that file.
    CertificateFor(PathBuf),
    Key,
    Token,
    /// A key that nodes share and sign with.
    SharedKey,
    /// Something to be run, named by that key of the configuration.
    Program {
        key: &'static str,
    },
}

/// Reads a whole file of ordinary size.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > LARGEST {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB")),
        false => Ok(bytes),
    }
}

/// Reports the files that would not do.
pub(super) fn check(files: &[FileUse], mistakes: &mut Mistakes) {
    for FileUse { path, at, content } in files {
        let fault = match content {
            // It may be of any size, and readable by nobody.
            Content::Program { .. } => not_executable(path),
            _ => match read(path) {
                Err(error) => Some(format!("cannot be read: {error}")),
                Ok(bytes) => content.fault(&bytes),
            },
        };
        if let Some(fault) = fault {
            let default = matches!(content, Content::DefaultAuthorities);
            let prefix = if default { "`verify` is on and the default `ca_file` " } else { "" };
            mistakes.add(at, format!("{prefix}{} {fault}", path.display()), content.help());
        }
    }
}

impl Content {
    /// What keeps these bytes from being of use.
    fn fault(&self, bytes: &[u8]) -> Option<String> {
        match self {
            Self::Authorities | Self::DefaultAuthorities => match certificates(bytes) {
                Err(fault) => Some(fault),
                Ok(found) => {
                    let mut store = RootCertStore::empty();
                    let refused = found.into_iter().find_map(|certificate| store.add(certificate).err());
                    refused.map(|error| format!("holds a certificate that cannot be an authority: {error}"))
                }
            },
            Self::CertificateFor(key) => {
                let chain = match certificates(bytes) {
                    Err(fault) => return Some(fault),
                    Ok(chain) => chain,
                };
                // Whatever is wrong with the key alone is said where the key is named.
                let key_der = PrivateKeyDer::from_pem_slice(&read(key).ok()?).ok()?;
                let error = CertifiedKey::from_der(chain, key_der, &ring::default_provider()).err()?;
                Some(format!("does not go with the key in {}: {error}", key.display()))
            }
            Self::Key => {
                let key = match PrivateKeyDer::from_pem_slice(bytes) {
                    Err(error) => {
                        return Some(format!("holds no private key in PEM form: {error}"));
                    }
                    Ok(key) => key,
                };
                let error = ring::sign::any_supported_type(&key).err()?;
                Some(format!("holds a private key that cannot be used: {error}"))
            }
            Self::Token => match str::from_utf8(bytes).map(str::trim) {
                Ok("") => Some("is empty".to_owned()),
                Ok(token) if token.bytes().all(|byte| byte.is_ascii_graphic()) => None,
                _ => Some("is not a token: a token is one line of printable characters".to_owned()),
            },
            Self::SharedKey => shared_key(bytes).err(),
            Self::Program { .. } => None,
        }
    }

    fn help(&self) -> Cow<'static, str> {
        let help = match self {
            Self::Program { key } => return format!("`{key}` names a program that xvip may execute").into(),
            Self::SharedKey => {
                "`key_file` names a file with 64 to 128 hexadecimal digits: openssl rand -hex 32 makes one"
            }
            Self::Authorities => {
                "`ca_file` names a PEM file of certificates, such as the cluster's /etc/kubernetes/pki/ca.crt"
            }
            Self::DefaultAuthorities => {
                "set `ca_file` in the check's section to the certificate authority of the backends, or `verify = false` to take any certificate"
            }
            Self::CertificateFor(_) => "`client_certificate` names a PEM file with the certificate of `client_key`",
            Self::Key => "`client_key` names a PEM file with a private key that is not encrypted",
            Self::Token => "`token_file` names a file that holds a bearer token and nothing else",
        };
        help.into()
    }
}

/// The key in the text of a `key_file`: 32 to 64 bytes in hexadecimal.
pub(super) fn shared_key(text: &[u8]) -> Result<Vec<u8>, String> {
    let digits = text.trim_ascii();
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err("is not a key: it holds something else than hexadecimal digits".to_owned());
    }
    if !(64..=128).contains(&digits.len()) || !digits.len().is_multiple_of(2) {
        return Err(format!("holds {} hexadecimal digits; a key has 64 to 128, two for each byte", digits.len()));
    }
    let value = |digit: u8| (digit as char).to_digit(16).map_or(0, |value| value as u8);
    Ok(digits.chunks_exact(2).map(|pair| value(pair[0]) << 4 | value(pair[1])).collect())
}

fn not_executable(path: &Path) -> Option<String> {
    match access(path, AccessFlags::X_OK) {
        Err(error) => Some(format!("cannot be executed: {}", io::Error::from(error))),
        Ok(()) if path.is_dir() => Some("is a directory".to_owned()),
        Ok(()) => None,
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Err(error) => Err(format!("is not a PEM file: {error}")),
        Ok(found) if found.is_empty() => Err("holds no certificate in PEM form".to_owned()),
        Ok(found) => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;

    use super::*;
    use crate::config::{example, load, model};

    struct Pki {
        dir: TempDir,
    }

    impl Pki {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let pki = Self { dir };
            for name in ["one", "two"] {
                let key = KeyPair::generate().expect("a key");
                let params = CertificateParams::new([name.to_owned()]).expect("parameters");
                pki.write(&format!("{name}.crt"), &params.self_signed(&key).expect("a certificate").pem());
                pki.write(&format!("{name}.key"), &key.serialize_pem());
            }
            pki.write("token", "eyJhbGciOi.x-y_z\n");
            pki.write("empty", "\n");
            pki.write("two-lines", "a\nb\n");
            pki.write("garbage.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
            pki.write("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
            pki
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.dir.path().join(name), text).expect("the file can be written");
        }

        /// Loads the example with these lines in its check, and gives "line-of-check:column: message" of each mistake, with
        /// the directory left out.
        fn load(&self, check: &str) -> Vec<String> {
            let dir = self.dir.path().display().to_string();
            let header = "[virtual_server.check]\n";
            let text = example().replace(header, &format!("{header}{}\n", check.replace("DIR", &dir)));
            let first = text.lines().position(|line| line == header.trim()).expect("the header") + 1;
            self.write("xvip.toml", &text);
            let Err(report) = load(&self.dir.path().join("xvip.toml")) else {
                return Vec::new();
            };
            let say = |mistake: &crate::config::Mistake| {
                let at = mistake.position.expect("a position");
                format!("{}:{}: {}", at.line - first, at.column, mistake.message.replace(&format!("{dir}/"), ""))
            };
            report.mistakes().iter().map(say).collect()
        }
    }

    #[test]
    fn files_are_looked_at_where_they_are_named() {
        let pki = Pki::new();
        let client = "verify = false\nclient_certificate = \"DIR/CRT\"\nclient_key = \"DIR/KEY\"";
        let client = |crt: &str, key: &str| client.replace("CRT", crt).replace("KEY", key);
        let cases: &[(String, &[&str])] = &[
            ("ca_file = \"DIR/one.crt\"\ntoken_file = \"DIR/token\"".into(), &[]),
            (client("one.crt", "one.key"), &[]),
            ("ca_file = \"DIR/none\"".into(), &["1:11: none cannot be read: No such file or directory (os error 2)"]),
            ("ca_file = \"DIR\"".into(), &["1:11: DIR cannot be read: Is a directory (os error 21)"]),
            ("ca_file = \"DIR/token\"".into(), &["1:11: token holds no certificate in PEM form"]),
            ("ca_file = \"DIR/one.key\"".into(), &["1:11: one.key holds no certificate in PEM form"]),
            ("ca_file = \"DIR/cut.pem\"".into(), &["1:11: cut.pem is not a PEM file"]),
            (
                "ca_file = \"DIR/garbage.pem\"".into(),
                &["1:11: garbage.pem holds a certificate that cannot be an authority"],
            ),
            (client("one.crt", "two.key"), &["2:22: one.crt does not go with the key in two.key"]),
            (client("one.crt", "one.crt"), &["3:14: one.crt holds no private key in PEM form"]),
            (client("empty", "none"), &["2:22: empty holds no certificate in PEM form", "3:14: none cannot be read"]),
            ("verify = false\ntoken_file = \"DIR/empty\"".into(), &["2:14: empty is empty"]),
            (
                "path = \"readyz\"\nca_file = \"DIR/none\"\ntoken_file = \"DIR/empty\"".into(),
                &[
                    "1:8: `path`: \"readyz\" does not begin with `/`",
                    "2:11: none cannot be read",
                    "3:14: empty is empty",
                ],
            ),
            ("verify = false\ntoken_file = \"DIR/two-lines\"".into(), &["2:14: two-lines is not a token"]),
        ];
        for (check, expected) in cases {
            let found = pki.load(check);
            let dir = pki.dir.path().display().to_string();
            let as_expected = |(found, expected): (&String, &&str)| found.replace(&dir, "DIR").starts_with(*expected);
            assert!(
                found.len() == expected.len() && found.iter().zip(*expected).all(as_expected),
                "{check}\nexpected {expected:#?}\nfound {found:#?}"
            );
        }
    }

    #[test]
    fn keys_and_programs_of_vrrp_are_looked_at_too() {
        let digits = "0f".repeat(32);
        let key = shared_key(format!("{digits}\n").as_bytes()).expect("a key with a newline after it");
        assert_eq!(key, [0x0f; 32]);
        for (text, expected) in [
            (String::new(), "holds 0 hexadecimal digits"),
            ("0f".repeat(31), "holds 62 hexadecimal digits"),
            ("0F".repeat(64) + "00", "holds 130 hexadecimal digits"),
            ("0".repeat(65), "holds 65 hexadecimal digits"),
            ("0x".repeat(32), "is not a key: it holds something else"),
        ] {
            let fault = shared_key(text.as_bytes()).expect_err("no key");
            assert!(fault.starts_with(expected), "{text}: {fault}");
        }
        for (path, expected) in [
            ("/bin/sh", None),
            ("/bin", Some("is a directory")),
            ("/proc/version", Some("cannot be executed: Permission denied")),
            ("/nonexistent", Some("cannot be executed: No such file")),
        ] {
            let found = not_executable(Path::new(path));
            assert_eq!(found.is_some(), expected.is_some(), "{path}: {found:?}");
            assert!(found.unwrap_or_default().starts_with(expected.unwrap_or_default()), "{path}");
        }
        let vrrp = "[[vrrp]]\nname = \"v\"\ninterface = \"eth0\"\nvrid = 1\naddresses = [\"192.168.2.100\"]\nnotify = \"/n\"\n\
                    hmac = {key_id = 1, key_file = \"/k\"}\n[[vrrp.script]]\nname = \"s\"\ncommand = [\"/c\", \"/d\"]\n";
        let text = example() + vrrp;
        let named: Vec<_> =
            crate::config::read(&text).files.into_iter().map(|file| (file.path, file.content)).collect();
        let program = |key| Content::Program { key };
        assert_eq!(
            named[..3],
            [("/k".into(), Content::SharedKey), ("/c".into(), program("command")), ("/n".into(), program("notify"))]
        );
    }

    #[test]
    fn an_authority_that_only_the_default_names_is_refused_at_what_asked_for_it() {
        let mut mistakes = Mistakes::default();
        let path = PathBuf::from("/nonexistent/ca.crt");
        check(&[FileUse { path, at: 0..1, content: Content::DefaultAuthorities }], &mut mistakes);
        let report = mistakes.into_report("f", "verify = true").expect("a mistake");
        let mistake = &report.mistakes()[0];
        assert!(
            mistake.message.starts_with("`verify` is on and the default `ca_file` /nonexistent/ca.crt cannot be read")
        );
        assert!(mistake.help.contains("set `ca_file`") && mistake.help.contains("`verify = false`"));

        for (text, at) in [("verify = true", "verify = ".len()), ("rise = 1", 0)] {
            let text = example().replace("[virtual_server.check]\n", &format!("[virtual_server.check]\n{text}\n"));
            let files = crate::config::read(&text).files;
            assert_eq!(files.len(), 1);
            assert_eq!(files[0].content, Content::DefaultAuthorities);
            assert_eq!(files[0].path, Path::new("/etc/kubernetes/pki/ca.crt"));
            let header = text.find("[virtual_server.check]").expect("the header");
            let expected = if at == 0 { header } else { header + "[virtual_server.check]\n".len() + at };
            assert_eq!(files[0].at.start, expected);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_as_text_is_one_mistake_without_a_position() {
        let pki = Pki::new();
        let path = pki.dir.path().join("xvip.toml");
        for (bytes, expected) in [
            (None, "cannot be read: No such file or directory"),
            (Some(b"a = 1\nb = \xff".to_vec()), "cannot be read: line 2 is not UTF-8 text (byte 0xff)"),
            (Some(vec![b'#'; 1 << 21]), "cannot be read: larger than 1 MiB"),
        ] {
            if let Some(bytes) = bytes {
                fs::write(&path, bytes).expect("the file can be written");
            }
            let report = load(&path).expect_err("nothing to load");
            assert_eq!(report.mistakes().len(), 1);
            assert_eq!(report.mistakes()[0].position, None);
            assert!(report.mistakes()[0].message.starts_with(expected), "{report}");
            assert!(report.to_string().starts_with(&format!("{}: cannot be read", path.display())));
        }
    }

    #[test]
    fn what_is_loaded_is_what_is_parsed() {
        let pki = Pki::new();
        assert_eq!(pki.load("verify = false"), Vec::<String>::new());
        let config = load(&pki.dir.path().join("xvip.toml")).expect("a good file");
        let model::CheckKind::Https(_, tls) = &config.virtual_servers[0].check.kind else { panic!("https by default") };
        assert_eq!(tls.verify, model::Verify::No);
    }
}
