//! Values of single keys: what can be said of a value without looking at any other is checked here, while it is read.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::http::uri::PathAndQuery;
use ipnet::IpNet;
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeValue, ValueDeserializer},
};

use super::{
    model::{
        AllDown, Balance, Cgroup, ChecksumForm, Excess, HmacMode, OnDown, OnStop, Password, PreferLocal, ServerMode,
        Version, XdpMode,
    },
    report::Span,
};

/// What was wrong, and where.
pub(super) type Faults = Vec<(Span, String)>;

/// A value that a key can have.
pub(super) trait Leaf: Sized {
    /// What it is, for the reference and for remedies: "takes an integer".
    const KIND: &'static str;

    /// `None` only after a fault.
    fn read(value: &Spanned<DeValue<'_>>, faults: &mut Faults) -> Option<Self>;
}

/// A name that can stand in labels, tables and commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name(pub(super) String);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InterfaceName(pub(super) String);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AbsolutePath(pub(super) PathBuf);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SocketPath(pub(super) PathBuf);

/// The target of a request, in origin form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequestPath(pub(super) String);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostHeader(pub(super) String);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TlsName(pub(super) String);

/// An address that one host can have and that needs no interface to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostAddress(pub(super) IpAddr);

/// The address of a virtual server: one that a host can have, or its loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VipAddress(pub(super) IpAddr);

/// An address of a neighbour or of this host, on an interface that is given elsewhere: it may be link-local.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RouterAddress(pub(super) IpAddr);

/// An address that a host can have, with the length of its subnet's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostNet(pub(super) IpNet);

/// A range of addresses, by the prefix that they have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SourceRange(pub(super) IpNet);

/// What IPv4 addresses are shown by, as in `ip address show label`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AddressLabel(pub(super) String);

/// One word of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Argument(pub(super) String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) struct Time(pub(super) Duration);

/// Inclusive ranges of HTTP status codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statuses(pub(super) Vec<(u16, u16)>);

/// A loopback address to listen on, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listener(pub(super) Option<SocketAddr>);

/// Any address to listen on, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProbeListener(pub(super) Option<SocketAddr>);

/// Where a node is spoken with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeAddress(pub(super) SocketAddr);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckType {
    Https,
    Http,
    Tcp,
}

/// The TOML type of a value, with its article.
pub(super) fn shape(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

/// Implements [`Leaf`] for integers by serde.
macro_rules! integers {
    ($($type:ty),*) => {
        $(impl Leaf for $type {
            const KIND: &'static str = "an integer";

            fn read(value: &Spanned<DeValue<'_>>, faults: &mut Faults) -> Option<Self> {
                let DeValue::Integer(digits) = value.get_ref() else {
                    return mismatch(value, "an integer", faults);
                };
                if !digits.as_str().trim_start_matches(['+', '-']).chars().all(|c| c.is_digit(digits.radix())) {
                    return fault(value, format!("{digits} is not an integer"), faults);
                }
                deserialize(value).or_else(|| fault(value, format!("{digits} is out of range"), faults))
            }
        })*
    };
}

integers!(u8, u16, i16, u32, NonZeroU32);

impl Leaf for Version {
    const KIND: &'static str = "2 or 3";

    fn read(value: &Spanned<DeValue<'_>>, faults: &mut Faults) -> Option<Self> {
        match u8::read(value, faults)? {
            2 => Some(Self::V2),
            3 => Some(Self::V3),
            other => fault(value, format!("there is no version {other}"), faults),
        }
    }
}

impl Leaf for bool {
    const KIND: &'static str = "true or false";

    fn read(value: &Spanned<DeValue<'_>>, faults: &mut Faults) -> Option<Self> {
        deserialize(value).or_else(|| mismatch(value, Self::KIND, faults))
    }
}

/// Implements [`Leaf`] for what is written as a string.
macro_rules! strings {
    ($($type:ty: $kind:literal by $parse:expr;)*) => {
        $(impl Leaf for $type {
            const KIND: &'static str = $kind;

            fn read(value: &Spanned<DeValue<'_>>, faults: &mut Faults) -> Option<Self> {
                let Some(text) = deserialize::<String>(value) else {
                    return mismatch(value, "a string", faults);
                };
                let parse: fn(&str) -> Result<$type, String> = $parse;
                match parse(&text) {
                    Ok(read) => Some(read),
                    Err(reason) => fault(value, format!("{text:?} {reason}"), faults),
                }
            }
        })*
    };
}

strings! {
    Name: "a name of letters, digits, `-`, `_` and `.`" by name;
    InterfaceName: "the name of an interface" by interface_name;
    AbsolutePath: "an absolute path" by absolute_path;
    SocketPath: "an absolute path of at most 107 bytes" by socket_path;
    RequestPath: "a path that begins with `/`" by request_path;
    HostHeader: "a host name, with `:port` if need be" by host_header;
    TlsName: "a DNS name or an IP address" by tls_name;
    HostAddress: "an IPv4 or IPv6 address" by host_address;
    VipAddress: "an IPv4 or IPv6 address" by vip_address;
    RouterAddress: "an IPv4 or IPv6 address" by |text| address(text).map(RouterAddress);
    HostNet: "an IPv4 or IPv6 address, with or without a prefix length" by host_net;
    SourceRange: "an address with or without a prefix length" by source_range;
    AddressLabel: "a string of at most 15 bytes" by label;
    Argument: "a string" by argument;
    Password: "a string of at most 8 bytes" by password;
    Time: "a duration" by time;
    Listener: "a loopback address with a port, or \"off\"" by listener;
    ProbeListener: "an address with a port, or \"off\"" by probe_listener;
    NodeAddress: "an address with a port" by node_address;
    Cgroup: "\"auto\", \"off\" or an absolute path" by cgroup;
    XdpMode: "\"auto\", \"native\" or \"generic\"" by |text| {
        choice(text, &[("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)])
    };
    OnStop: "\"detach\" or \"keep\"" by |text| choice(text, &[("detach", OnStop::Detach), ("keep", OnStop::Keep)]);
    ServerMode: "\"nat\", \"dsr\" or \"auto\"" by |text| {
        choice(text, &[("nat", ServerMode::Nat), ("dsr", ServerMode::Dsr), ("auto", ServerMode::Auto)])
    };
    OnDown: "\"reset\" or \"keep\"" by |text| choice(text, &[("reset", OnDown::Reset), ("keep", OnDown::Keep)]);
    Balance: "\"source-hash\", \"flow-hash\", \"round-robin\" or \"least-connections\"" by |text| {
        choice(text, &Balance::ALL.map(|balance| (balance.label(), balance)))
    };
    PreferLocal: "\"off\", \"processes\" or \"all\"" by |text| {
        choice(text, &[("off", PreferLocal::Off), ("processes", PreferLocal::Processes), ("all", PreferLocal::All)])
    };
    AllDown: "\"reset\" or \"open\"" by |text| choice(text, &[("reset", AllDown::Reset), ("open", AllDown::Open)]);
    Excess: "\"challenge\", \"drop\" or \"reset\"" by |text| {
        choice(text, &[("challenge", Excess::Challenge), ("drop", Excess::Drop), ("reset", Excess::Reset)])
    };
    CheckType: "\"https\", \"http\" or \"tcp\"" by |text| {
        choice(text, &[("https", CheckType::Https), ("http", CheckType::Http), ("tcp", CheckType::Tcp)])
    };
    ChecksumForm: "\"pseudo-header\" or \"message\"" by |text| {
        choice(text, &[("pseudo-header", ChecksumForm::PseudoHeader), ("message", ChecksumForm::Message)])
    };
    HmacMode: "\"receive-only\", \"permissive\" or \"enforce\"" by |text| {
        let enforce = ("enforce", HmacMode::Enforce);
        choice(text, &[("receive-only", HmacMode::ReceiveOnly), ("permissive", HmacMode::Permissive), enforce])
    };
}

/// Implements [`Leaf`] for lists of leaves.
macro_rules! lists {
    ($($type:ty: $kind:literal of $count:expr;)*) => {
        $(impl Leaf for Vec<Spanned<$type>> {
            const KIND: &'static str = $kind;

            fn read(value: &Spanned<DeValue<'_>>, faults: &mut Faults) -> Option<Self> {
                let DeValue::Array(items) = value.get_ref() else {
                    return mismatch(value, "a list", faults);
                };
                if !$count.contains(&items.len()) {
                    return fault(value, "the list is empty".to_owned(), faults);
                }
                let read = |item: &Spanned<_>| Some(Spanned::new(item.span(), <$type>::read(item, faults)?));
                // Every item is read before the first bad one refuses the list.
                let read: Vec<_> = items.iter().map(read).collect();
                read.into_iter().collect()
            }
        })*
    };
}

lists! {
    InterfaceName: "a list of names of interfaces" of (0..);
    HostNet: "a list of addresses, each with or without a prefix length" of (1..);
    RouterAddress: "a list of addresses" of (0..);
    NodeAddress: "a list of addresses, each with a port" of (1..);
    SourceRange: "a list of addresses, each with or without a prefix length" of (0..);
    Argument: "a list of strings" of (1..);
}

impl Leaf for Statuses {
    const KIND: &'static str = "a status code, a range of them, or a list of both";

    fn read(value: &Spanned<DeValue<'_>>, faults: &mut Faults) -> Option<Self> {
        let mut one = |value: &Spanned<DeValue<'_>>| match value.get_ref() {
            DeValue::String(text) => match statuses(text) {
                Ok(range) => Some(range),
                Err(reason) => fault(value, format!("{text:?} {reason}"), faults),
            },
            DeValue::Integer(code) => match statuses(code.as_str()) {
                Ok(range) => Some(range),
                Err(reason) => fault(value, format!("{code} {reason}"), faults),
            },
            _ => mismatch(value, "a string", faults),
        };
        let DeValue::Array(items) = value.get_ref() else {
            return one(value).map(|range| Self(vec![range]));
        };
        let read: Vec<_> = items.iter().map(one).collect();
        if read.is_empty() {
            return fault(value, "the list is empty, so that no answer would be healthy".to_owned(), faults);
        }
        read.into_iter().collect::<Option<_>>().map(Self)
    }
}

fn deserialize<T: DeserializeOwned>(value: &Spanned<DeValue<'_>>) -> Option<T> {
    T::deserialize(ValueDeserializer::from(value.clone())).ok()
}

fn mismatch<T>(value: &Spanned<DeValue<'_>>, expected: &str, faults: &mut Faults) -> Option<T> {
    fault(value, format!("expected {expected}, found {}", shape(value.get_ref())), faults)
}

fn fault<T>(value: &Spanned<DeValue<'_>>, fault: String, faults: &mut Faults) -> Option<T> {
    faults.push((value.span(), fault));
    None
}

fn choice<T: Copy>(text: &str, known: &[(&'static str, T)]) -> Result<T, String> {
    let found = known.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        match super::keys::nearest(text, known.iter().map(|(name, _)| *name)) {
            Some(meant) => format!("is unknown; did you mean {meant:?}?"),
            None => "is unknown".to_owned(),
        }
    })
}

fn name(text: &str) -> Result<Name, String> {
    /// The length of a DNS label, and so of most names in Kubernetes.
    const LONGEST: usize = 63;

    let ordinary = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match text {
        "" => Err("is empty".to_owned()),
        _ if text.len() > LONGEST => Err(format!("is longer than {LONGEST} bytes")),
        _ => match text.chars().find(|&c| !ordinary(c)) {
            Some(c) => Err(format!("holds {c:?}")),
            None if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) => {
                Err("begins with neither a letter nor a digit".to_owned())
            }
            None => Ok(Name(text.to_owned())),
        },
    }
}

/// As dev_valid_name() in the kernel's net/core/dev.c.
fn interface_name(text: &str) -> Result<InterfaceName, String> {
    match text {
        "" => Err("is empty".to_owned()),
        "." | ".." => Err("is not a name of an interface".to_owned()),
        _ if text.len() >= libc::IFNAMSIZ => Err("is longer than the 15 bytes of an interface's name".to_owned()),
        _ => match text.chars().find(|&c| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':')) {
            Some(c) => Err(format!("holds {c:?}, which no interface's name can")),
            None => Ok(InterfaceName(text.to_owned())),
        },
    }
}

fn absolute_path(text: &str) -> Result<AbsolutePath, String> {
    match text {
        "" => Err("is empty".to_owned()),
        _ if text.contains('\0') => Err("holds a zero byte".to_owned()),
        _ if !Path::new(text).is_absolute() => Err("is relative: it would depend on where xvip was started".to_owned()),
        _ => Ok(AbsolutePath(text.into())),
    }
}

fn socket_path(text: &str) -> Result<SocketPath, String> {
    /// `sun_path` in unix(7), less its final zero.
    const LONGEST: usize = 107;

    match absolute_path(text)? {
        _ if text.len() > LONGEST => Err(format!("is longer than {LONGEST} bytes, the longest path of a socket")),
        _ if text.ends_with('/') => Err("is a directory".to_owned()),
        AbsolutePath(path) => Ok(SocketPath(path)),
    }
}

fn request_path(text: &str) -> Result<RequestPath, String> {
    if !text.starts_with('/') {
        return Err("does not begin with `/`".to_owned());
    }
    // A fragment is not part of a request: the parser would drop it without a word.
    if text.contains('#') {
        return Err("holds a fragment, which is never sent".to_owned());
    }
    match PathAndQuery::try_from(text) {
        Ok(_) => Ok(RequestPath(text.to_owned())),
        Err(error) => Err(format!("cannot be requested: {error}")),
    }
}

fn host_header(text: &str) -> Result<HostHeader, String> {
    match text.parse::<hyper::http::uri::Authority>() {
        Ok(_) if text.contains('@') => Err("holds `@`: a Host header names no user".to_owned()),
        Ok(_) => Ok(HostHeader(text.to_owned())),
        Err(error) => Err(format!("is not a host: {error}")),
    }
}

fn tls_name(text: &str) -> Result<TlsName, String> {
    match ServerName::try_from(text) {
        Ok(_) => Ok(TlsName(text.to_owned())),
        Err(_) => Err("is neither a DNS name nor an IP address".to_owned()),
    }
}

fn host_address(text: &str) -> Result<HostAddress, String> {
    match address(text)? {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Err("is link-local, and so means a different host on each interface".to_owned())
        }
        address => Ok(HostAddress(address)),
    }
}

fn host_net(text: &str) -> Result<HostNet, String> {
    let Some((before, length)) = text.split_once('/') else {
        return Ok(HostNet(address(text)?.into()));
    };
    let address = address(before)?;
    match length.parse().map(|length| IpNet::new(address, length)) {
        Ok(Ok(net)) if net.prefix_len() > 0 => Ok(HostNet(net)),
        _ => {
            Err(format!("has no prefix length after the slash: it is from 1 to {}", IpNet::from(address).prefix_len()))
        }
    }
}

fn source_range(text: &str) -> Result<SourceRange, String> {
    let net = match text.split_once('/') {
        None => text
            .parse::<IpAddr>()
            .map(IpNet::from)
            .map_err(|_| "is not an IP address (names are not looked up)".to_owned())?,
        Some((address, length)) => {
            let address: IpAddr =
                address.parse().map_err(|_| "is not an IP address with a prefix length".to_owned())?;
            let net = length.parse().ok().and_then(|length| IpNet::new(address, length).ok());
            let most = IpNet::from(address).prefix_len();
            net.ok_or_else(|| format!("has no prefix length after the slash: it is from 0 to {most}"))?
        }
    };
    match net.addr() {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err("is an IPv4 address inside an IPv6 one; write it as IPv4".to_owned())
        }
        address if address != net.network() => {
            Err(format!("has bits set after its first {}; the range is {}", net.prefix_len(), net.trunc()))
        }
        _ => Ok(SourceRange(net)),
    }
}

/// An address that one host can have.
fn address(text: &str) -> Result<IpAddr, String> {
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(match text.split_once('/') {
            Some((address, length)) if address.parse::<IpAddr>().is_ok() => {
                format!("has a prefix length; leave out `/{length}`")
            }
            _ => "is not an IP address (names are not looked up)".to_owned(),
        });
    };
    let unfit = match address {
        _ if address.is_unspecified() => "is the unspecified address",
        _ if address.is_multicast() => "is a multicast address",
        _ if address.is_loopback() => "is a loopback address, which never leaves its host",
        IpAddr::V4(v4) if v4.is_broadcast() => "is the broadcast address",
        IpAddr::V4(v4) if v4.octets()[0] == 0 => "is in 0.0.0.0/8, which no host can have",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "is an IPv4 address inside an IPv6 one; write it as IPv4",
        _ => return Ok(address),
    };
    Err(unfit.to_owned())
}

fn vip_address(text: &str) -> Result<VipAddress, String> {
    match text.parse::<IpAddr>() {
        Ok(address) if address.is_loopback() => Ok(VipAddress(address)),
        _ => host_address(text).map(|HostAddress(address)| VipAddress(address)),
    }
}

fn cgroup(text: &str) -> Result<Cgroup, String> {
    match text {
        "auto" => Ok(Cgroup::Auto),
        "off" => Ok(Cgroup::Off),
        _ => absolute_path(text).map(|AbsolutePath(path)| Cgroup::At(path)),
    }
}

/// An interface's name may be followed by anything that leaves it one word.
fn label(text: &str) -> Result<AddressLabel, String> {
    match interface_name(&text.replace(':', "-")) {
        Ok(_) => Ok(AddressLabel(text.to_owned())),
        Err(_) => Err("is not one word of at most 15 bytes".to_owned()),
    }
}

fn argument(text: &str) -> Result<Argument, String> {
    match text.contains('\0') {
        true => Err("holds a zero byte".to_owned()),
        false => Ok(Argument(text.to_owned())),
    }
}

/// As much as fits into the packet. keepalived cuts what is longer, and so would accept a password that is not the one in its file.
fn password(text: &str) -> Result<Password, String> {
    match text.len() {
        0 => Err("is empty".to_owned()),
        1..=8 if text.contains('\0') => Err("holds a zero byte".to_owned()),
        1..=8 => Ok(Password::new(text)),
        _ => Err(format!(
            "is longer than 8 bytes; beside a keepalived with this password, write the 8 that it uses: {:?}",
            text.char_indices().take_while(|(at, c)| at + c.len_utf8() <= 8).map(|(_, c)| c).collect::<String>()
        )),
    }
}

fn time(text: &str) -> Result<Time, String> {
    humantime::parse_duration(text).map(Time).map_err(|error| format!("is not a duration: {error}"))
}

fn listener(text: &str) -> Result<Listener, String> {
    if text == "off" {
        return Ok(Listener(None));
    }
    match text.parse::<SocketAddr>() {
        Err(_) => Err("is not an address with a port".to_owned()),
        Ok(address) if !address.ip().is_loopback() => {
            Err("is not a loopback address: nothing may listen beyond this host".to_owned())
        }
        Ok(address) if address.port() == 0 => Err("has port 0".to_owned()),
        Ok(address) => Ok(Listener(Some(address))),
    }
}

fn probe_listener(text: &str) -> Result<ProbeListener, String> {
    if text == "off" {
        return Ok(ProbeListener(None));
    }
    match text.parse::<SocketAddr>() {
        Err(_) => Err("is not an address with a port".to_owned()),
        Ok(address) if address.port() == 0 => Err("has port 0".to_owned()),
        Ok(address) => Ok(ProbeListener(Some(address))),
    }
}

fn node_address(text: &str) -> Result<NodeAddress, String> {
    let Ok(address) = text.parse::<SocketAddr>() else {
        return Err("is not an address with a port".to_owned());
    };
    if address.port() == 0 {
        return Err("has port 0".to_owned());
    }
    host_address(&address.ip().to_string()).map(|_| NodeAddress(address))
}

fn statuses(text: &str) -> Result<(u16, u16), String> {
    let code = |text: &str| match text.trim().parse::<u16>() {
        Ok(code @ 100..=599) => Ok(code),
        _ => Err("is not a status code or a range of them (100 to 599)".to_owned()),
    };
    let (least, most) = text.split_once('-').unwrap_or((text, text));
    match (code(least)?, code(most)?) {
        (least, most) if least > most => Err("runs backwards".to_owned()),
        range => Ok(range),
    }
}
