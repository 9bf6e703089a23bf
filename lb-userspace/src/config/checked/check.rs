//! The section of a health check: which keys go together.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Checker, optional, written};
use crate::config::{
    files::{Content, FileUse},
    keys::{Field, Section as _},
    leaf::{CheckType, Time},
    model::{self, CheckKind, HttpRequest, Tls, Verify},
    raw,
    report::Span,
};

/// Longest time a hanging backend may stay in service.
const LONGEST_DETECTION: Duration = Duration::from_secs(600);

impl Checker<'_> {
    pub(super) fn check(&mut self, raw: &raw::Check) -> Option<model::Check> {
        self.refuse_slow_detection(raw);
        let kind = self.check_kind(raw);
        Some(model::Check {
            kind: kind?,
            interval: raw.interval.value()?.0,
            timeout: raw.timeout.value()?.0,
            rise: *raw.rise.value()?,
            fall: *raw.fall.value()?,
            jitter_percent: *raw.jitter.value()?,
            port: optional(&raw.port)?.copied(),
        })
    }

    fn refuse_slow_detection(&mut self, raw: &raw::Check) {
        let (Some(interval), Some(timeout), Some(fall)) = (raw.interval.value(), raw.timeout.value(), raw.fall.value())
        else {
            return;
        };
        let detection = (interval.0 + timeout.0) * fall.get();
        if detection > LONGEST_DETECTION {
            let longer = if interval > timeout { &raw.interval } else { &raw.timeout };
            let at = longer.span().or(raw.fall.span()).unwrap_or(raw.header());
            self.mistakes.add(
                &at,
                format!("a backend that hangs would stay in service for {}", written(Time(detection))),
                format!("`fall` times (`interval` + `timeout`) may be {} at most", written(Time(LONGEST_DETECTION))),
            );
        }
    }

    fn check_kind(&mut self, raw: &raw::Check) -> Option<CheckKind> {
        let kind = *raw.r#type.value()?;
        let request = [
            ("path", raw.path.key_span()),
            ("status", raw.status.key_span()),
            ("host", raw.host.key_span()),
            ("token_file", raw.token_file.key_span()),
        ];
        let tls = [
            ("verify", raw.verify.key_span()),
            ("ca_file", raw.ca_file.key_span()),
            ("server_name", raw.server_name.key_span()),
            ("client_certificate", raw.client_certificate.key_span()),
            ("client_key", raw.client_key.key_span()),
        ];
        match kind {
            CheckType::Tcp => {
                self.refuse_keys(&request, "type \"tcp\"", "\"https\" or \"http\"");
                self.refuse_keys(&tls, "type \"tcp\"", "\"https\"");
                Some(CheckKind::Tcp)
            }
            CheckType::Http => {
                self.refuse_keys(&tls, "type \"http\"", "\"https\"");
                Some(CheckKind::Http(self.request(raw)?))
            }
            CheckType::Https => {
                let (request, tls) = (self.request(raw), self.tls(raw));
                Some(CheckKind::Https(request?, tls?))
            }
        }
    }

    fn refuse_keys(&mut self, keys: &[(&str, Option<&Span>)], kind: &str, fitting: &str) {
        for (name, at) in keys {
            if let Some(at) = at {
                let help = format!("leave it out, or set `type` to {fitting}");
                self.mistakes.add(at, format!("`{name}` means nothing to a check of {kind}"), help);
            }
        }
    }

    fn request(&mut self, raw: &raw::Check) -> Option<HttpRequest> {
        // First, so that the file is noted whatever else is wrong.
        let token_file = match (raw.token_file.value(), raw.token_file.span()) {
            (Some(path), Some(at)) => Some(self.file(&path.0, at, Content::Token)),
            _ => None,
        };
        Some(HttpRequest {
            path: raw.path.value()?.0.clone(),
            status: raw.status.value()?.0.clone(),
            host: optional(&raw.host)?.map(|host| host.0.clone()),
            token_file: optional(&raw.token_file)?.and(token_file),
        })
    }

    fn tls(&mut self, raw: &raw::Check) -> Option<Tls> {
        let client_certificate = self.client_certificate(raw);
        let verify = if *raw.verify.value()? {
            let content = match raw.ca_file {
                Field::Default(_) => Content::DefaultAuthorities,
                _ => Content::Authorities,
            };
            // The default is nowhere in the file: the nearest thing to it is what switched verification on.
            let at = raw.ca_file.span().or(raw.verify.span()).unwrap_or(raw.header());
            Verify::Authority(self.file(&raw.ca_file.value()?.0, at, content))
        } else {
            if let Some(at) = raw.ca_file.key_span() {
                self.mistakes.add(at, "`ca_file` is never used with `verify = false`", "leave out one of the two");
            }
            Verify::No
        };
        Some(Tls {
            verify,
            server_name: optional(&raw.server_name)?.map(|name| name.0.clone()),
            client_certificate: client_certificate?,
        })
    }

    fn client_certificate(&mut self, raw: &raw::Check) -> Option<Option<(PathBuf, PathBuf)>> {
        let (certificate, key) = (&raw.client_certificate, &raw.client_key);
        let lonely = match (certificate, key) {
            (Field::Written(..), Field::Absent) => Some((certificate, "client_certificate", "client_key")),
            (Field::Absent, Field::Written(..)) => Some((key, "client_key", "client_certificate")),
            _ => None,
        };
        if let Some((field, name, other)) = lonely {
            let at = field.key_span().cloned().unwrap_or(raw.header());
            self.mistakes.add(
                &at,
                format!("`{name}` without `{other}`"),
                format!("add `{other}`: neither is of use alone"),
            );
            return None;
        }
        let (Some(certificate_path), Some(key_path)) = (optional(certificate)?, optional(key)?) else {
            return Some(None);
        };
        let key_path = self.file(&key_path.0, key.span()?, Content::Key);
        let content = Content::CertificateFor(key_path.clone());
        Some(Some((self.file(&certificate_path.0, certificate.span()?, content), key_path)))
    }

    /// Notes a file that will be read, and where to complain about it.
    fn file(&mut self, path: &Path, at: Span, content: Content) -> PathBuf {
        self.files.push(FileUse { path: path.to_owned(), at, content });
        path.to_owned()
    }
}
