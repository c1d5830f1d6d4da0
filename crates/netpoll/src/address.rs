//! Addresses as Go writes them, and as the kernel and JavaScript have them. Nothing here asks a resolver.

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use socket2::SockAddr;

/// The longest path, or abstract name, that fits a unix address: 108 bytes less one NUL.
const UNIX_MAX: usize = 107;

/// Addresses of one name that are tried; a resolver may give many.
const MAX_ADDRESSES: usize = 64;

/// What a network and an address text mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `host:port` of 'tcp', 'tcp4' and 'tcp6'.
    Inet {
        /// The part before the port.
        host: Host,
        /// 0 lets the kernel choose one.
        port: u16,
        /// What 'tcp4' and 'tcp6' allow; 'tcp' allows both.
        only: Option<Family>,
    },
    /// A unix socket in the file system.
    Path(PathBuf),
    /// `@name`: a unix socket in Linux's abstract namespace.
    Abstract(Vec<u8>),
}

/// The host of an IP address text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// Nothing: all addresses of this machine.
    Any,
    /// 'localhost', which needs no resolver.
    Localhost,
    /// A literal.
    Ip(IpAddr),
    /// A name that only a resolver knows.
    Name(String),
}

/// The two kinds of IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Why a text is no address that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// The network is none of tcp, tcp4, tcp6 and unix.
    UnknownNetwork,
    /// There is no colon before a port.
    MissingPort,
    /// What is behind the last colon is no port.
    InvalidPort,
    /// More than one colon outside of brackets.
    TooManyColons,
    /// Neither an IP literal nor a host name.
    InvalidHost,
    /// The literal does not belong to the network.
    WrongFamily,
    /// A host name, where an address is needed.
    Unresolved,
    /// A unix address without path or name.
    EmptyPath,
    /// A unix address that does not fit its 107 bytes.
    PathTooLong,
    /// A NUL in the text.
    NulByte,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AddressError::UnknownNetwork => "unknown network: it must be tcp, tcp4, tcp6 or unix",
            AddressError::MissingPort => "missing port: the address must be host:port",
            AddressError::InvalidPort => "invalid port: it must be a number from 0 to 65535",
            AddressError::TooManyColons => "too many colons: an IPv6 address needs brackets",
            AddressError::InvalidHost => "invalid host: it must be an IP address or a host name",
            AddressError::WrongFamily => "the IP address does not belong to the network",
            AddressError::Unresolved => "the host name has to be resolved first",
            AddressError::EmptyPath => "the path of the unix socket is empty",
            AddressError::PathTooLong => "the path of the unix socket is longer than 107 bytes",
            AddressError::NulByte => "the address contains a NUL byte",
        })
    }
}

impl std::error::Error for AddressError {}

/// Reads an address text: `:8080`, `127.0.0.1:0`, `[::1]:8080`, `localhost:8080`, and for the network
/// 'unix' `/run/app.sock` or `@abstract`.
pub fn parse(network: &str, address: &str) -> Result<Target, AddressError> {
    let only = match network {
        "tcp" => None,
        "tcp4" => Some(Family::V4),
        "tcp6" => Some(Family::V6),
        "unix" => return parse_unix(address),
        _ => return Err(AddressError::UnknownNetwork),
    };
    let (host, port) = split(address)?;
    let (host, port) = (parse_host(host)?, parse_port(port)?);
    match (&host, only) {
        (Host::Ip(ip), Some(only)) if Family::of(ip) != only => Err(AddressError::WrongFamily),
        _ => Ok(Target::Inet { host, port, only }),
    }
}

/// The name that has to be resolved before the address can be used, if there is one.
pub fn host_to_resolve(network: &str, address: &str) -> Result<Option<String>, AddressError> {
    match parse(network, address)? {
        Target::Inet { host: Host::Name(name), .. } => Ok(Some(name)),
        _ => Ok(None),
    }
}

/// The same for an address to dial. Also checks the address to dial from.
pub fn host_to_dial(
    network: &str,
    address: &str,
    local: Option<&str>,
) -> Result<Option<String>, AddressError> {
    let local = local.map(|local| Local::parse(network, local)).transpose()?;
    match parse(network, address)? {
        Target::Inet { host: Host::Name(name), .. } => Ok(Some(name)),
        target => dial_addresses(&target, &[], local.as_ref()).map(|_| None),
    }
}

/// What to connect to for a target, in the order in which it is tried: the families take turns. No host is
/// 'localhost'. `resolved` are the addresses of a name; those that `local` cannot reach are left out.
pub fn dial_addresses(
    target: &Target,
    resolved: &[String],
    local: Option<&Local>,
) -> Result<Vec<SockAddr>, AddressError> {
    let (hosts, port, only) = match target {
        Target::Inet { host: Host::Name(_), port, only } => {
            (resolved.iter().filter_map(|ip| ip.parse().ok()).collect(), port, *only)
        }
        Target::Inet { host, port, only } => (dial_hosts(host), port, *only),
        Target::Path(_) | Target::Abstract(_) => return listen_addresses(target),
    };
    let addresses = interleave(hosts).into_iter().map(|ip| SocketAddr::new(ip, *port));
    let fits = |address: &SocketAddr| {
        only.is_none_or(|only| only == Family::of(&address.ip()))
            && local.is_none_or(|local| local.ip_for(&address.ip()).is_some())
    };
    let addresses = addresses.filter(fits).take(MAX_ADDRESSES).map(SockAddr::from).collect::<Vec<_>>();
    match addresses.is_empty() {
        true => Err(AddressError::WrongFamily),
        false => Ok(addresses),
    }
}

/// The address that a dialed connection comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    host: Host,
    /// 0 lets the kernel choose one.
    pub(crate) port: u16,
}

impl Local {
    /// Reads `host`, `host:port`, or `[v6]:port`.
    pub fn parse(network: &str, text: &str) -> Result<Local, AddressError> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let target = match bare.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => parse(network, &format!("{ip}:0")),
            Ok(IpAddr::V6(ip)) => parse(network, &format!("[{ip}]:0")),
            Err(_) if text.contains(':') => parse(network, text),
            Err(_) => parse(network, &format!("{text}:0")),
        };
        match target? {
            Target::Inet { host: Host::Name(_), .. } => Err(AddressError::Unresolved),
            Target::Inet { host, port, .. } => Ok(Local { host, port }),
            Target::Path(_) | Target::Abstract(_) => Err(AddressError::WrongFamily),
        }
    }

    /// What to bind to before connecting to `remote`.
    pub(crate) fn address_for(&self, remote: &SockAddr) -> Option<SockAddr> {
        let ip = self.ip_for(&remote.as_socket()?.ip())?;
        Some(SocketAddr::new(ip, self.port).into())
    }

    fn ip_for(&self, remote: &IpAddr) -> Option<IpAddr> {
        let family = Family::of(remote);
        listen_hosts(&self.host, Some(family)).ok()?.into_iter().find(|ip| Family::of(ip) == family)
    }
}

/// Where to listen for a target: the first of these that the machine supports. No host is `[::]`, which
/// takes IPv4 too unless the network is 'tcp6', and `0.0.0.0` without IPv6.
pub fn listen_addresses(target: &Target) -> Result<Vec<SockAddr>, AddressError> {
    match target {
        Target::Inet { host, port, only } => {
            let hosts = listen_hosts(host, *only)?;
            Ok(hosts.into_iter().map(|ip| SocketAddr::new(ip, *port).into()).collect())
        }
        Target::Path(path) => unix_address(path.as_os_str().as_bytes()),
        Target::Abstract(name) => unix_address(&[b"\0", &name[..]].concat()),
    }
}

/// One end of a connection, or where a listener listens, as JavaScript shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// 4, 6, or 1 for a unix socket.
    pub family: u8,
    /// An IP address; a path, `@name`, or nothing.
    pub address: String,
    /// 0 for a unix socket.
    pub port: u16,
}

impl Endpoint {
    /// `family` of a unix socket.
    pub const UNIX: u8 = 1;
    const V4: u8 = 4;
    const V6: u8 = 6;

    /// What the kernel's address says.
    pub fn of(address: &SockAddr) -> Endpoint {
        match address.as_socket() {
            Some(ip) => Endpoint::of_ip(ip.ip(), ip.port(), scope(&ip)),
            None => Endpoint { family: Endpoint::UNIX, address: unix_text(address), port: 0 },
        }
    }

    fn of_ip(ip: IpAddr, port: u16, scope: u32) -> Endpoint {
        let family = if ip.is_ipv4() { Endpoint::V4 } else { Endpoint::V6 };
        let address = if scope == 0 { ip.to_string() } else { format!("{ip}%{scope}") };
        Endpoint { family, address, port }
    }
}

/// An endpoint in six words, for the address table:
///
/// ```text
///  0                1     2     3     4     5
///  port << 16 | 4   IPv4
///  port << 16 | 6   IPv6, highest word first  interface of a link-local address
///               1   (a unix socket; its path does not fit)
/// ```
pub fn encode(address: &SockAddr) -> [u32; 6] {
    let Some(socket) = address.as_socket() else { return [Endpoint::UNIX.into(), 0, 0, 0, 0, 0] };
    let port = u32::from(socket.port()) << 16;
    match socket.ip() {
        IpAddr::V4(ip) => [port | u32::from(Endpoint::V4), ip.to_bits(), 0, 0, 0, 0],
        IpAddr::V6(ip) => {
            let [a, b, c, d] = [96, 64, 32, 0].map(|shift| (ip.to_bits() >> shift) as u32);
            [port | u32::from(Endpoint::V6), a, b, c, d, scope(&socket)]
        }
    }
}

/// What `encode` wrote; None for anything else, such as words that were never written.
pub fn decode(words: [u32; 6]) -> Option<Endpoint> {
    let [head, a, b, c, d, scope] = words;
    let port = (head >> 16) as u16;
    match u8::try_from(head & 0xffff).ok()? {
        Endpoint::V4 => Some(Endpoint::of_ip(Ipv4Addr::from_bits(a).into(), port, 0)),
        Endpoint::V6 => {
            let bits = [a, b, c, d].into_iter().fold(0, |bits, word| bits << 32 | u128::from(word));
            Some(Endpoint::of_ip(Ipv6Addr::from_bits(bits).into(), port, scope))
        }
        Endpoint::UNIX => Some(Endpoint { family: Endpoint::UNIX, address: String::new(), port: 0 }),
        _ => None,
    }
}

impl Family {
    fn of(ip: &IpAddr) -> Family {
        if ip.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }
}

/// The text before and behind the colon of the port, without brackets.
fn split(address: &str) -> Result<(&str, &str), AddressError> {
    if let Some(rest) = address.strip_prefix('[') {
        let (host, behind) = rest.split_once(']').ok_or(AddressError::InvalidHost)?;
        // Only literals stand in brackets; empty ones are no host.
        host.parse::<IpAddr>().map_err(|_| AddressError::InvalidHost)?;
        return Ok((host, behind.strip_prefix(':').ok_or(AddressError::MissingPort)?));
    }
    let (host, port) = address.rsplit_once(':').ok_or(AddressError::MissingPort)?;
    match host.contains(':') {
        true => Err(AddressError::TooManyColons),
        false => Ok((host, port)),
    }
}

fn parse_host(host: &str) -> Result<Host, AddressError> {
    if host.is_empty() {
        return Ok(Host::Any);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(Host::Localhost);
    }
    if let Ok(ip) = host.parse() {
        return Ok(Host::Ip(ip));
    }
    if host.contains('\0') {
        return Err(AddressError::NulByte);
    }
    let is_foreign = |c: char| c.is_whitespace() || c.is_control() || "[]/@%".contains(c);
    match host.contains(is_foreign) {
        true => Err(AddressError::InvalidHost),
        false => Ok(Host::Name(host.to_owned())),
    }
}

fn parse_port(port: &str) -> Result<u16, AddressError> {
    // Checked first, for `parse` takes a sign.
    match port.bytes().all(|byte| byte.is_ascii_digit()) {
        true => port.parse().map_err(|_| AddressError::InvalidPort),
        false => Err(AddressError::InvalidPort),
    }
}

fn parse_unix(address: &str) -> Result<Target, AddressError> {
    let (is_abstract, name) = match address.strip_prefix('@') {
        Some(name) => (true, name),
        None => (false, address),
    };
    if name.is_empty() {
        return Err(AddressError::EmptyPath);
    }
    if name.contains('\0') {
        return Err(AddressError::NulByte);
    }
    if name.len() > UNIX_MAX {
        return Err(AddressError::PathTooLong);
    }
    Ok(if is_abstract { Target::Abstract(name.into()) } else { Target::Path(name.into()) })
}

fn listen_hosts(host: &Host, only: Option<Family>) -> Result<Vec<IpAddr>, AddressError> {
    let (v4, v6) = match host {
        Host::Any => (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()),
        Host::Localhost => (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()),
        Host::Ip(ip) => return Ok(vec![*ip]),
        Host::Name(_) => return Err(AddressError::Unresolved),
    };
    Ok(match only {
        Some(Family::V4) => vec![v4],
        Some(Family::V6) => vec![v6],
        None if *host == Host::Localhost => vec![v4],
        None => vec![v6, v4],
    })
}

fn dial_hosts(host: &Host) -> Vec<IpAddr> {
    match host {
        Host::Ip(ip) => vec![*ip],
        _ => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
    }
}

/// The families in turns, beginning with the first address (RFC 8305, section 4).
fn interleave(hosts: Vec<IpAddr>) -> Vec<IpAddr> {
    let is_first = |ip: &IpAddr| hosts.first().is_some_and(|first| first.is_ipv4() == ip.is_ipv4());
    let (first, second): (Vec<_>, Vec<_>) = hosts.iter().copied().partition(is_first);
    let pairs = first.len().max(second.len());
    (0..pairs).flat_map(|pair| [first.get(pair), second.get(pair)]).flatten().copied().collect()
}

fn unix_address(name: &[u8]) -> Result<Vec<SockAddr>, AddressError> {
    let address = SockAddr::unix(OsStr::from_bytes(name)).map_err(|_| AddressError::PathTooLong)?;
    Ok(vec![address])
}

fn unix_text(address: &SockAddr) -> String {
    match (address.as_pathname(), address.as_abstract_namespace()) {
        (Some(path), _) => path.to_string_lossy().into_owned(),
        (None, Some(name)) => format!("@{}", String::from_utf8_lossy(name)),
        (None, None) => String::new(),
    }
}

fn scope(address: &SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(v6) => v6.scope_id(),
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::net::SocketAddrV6;

    use proptest::prelude::*;
    use socket2::{Domain, Socket, Type};

    use super::*;

    fn inet(host: Host, port: u16) -> Result<Target, AddressError> {
        Ok(Target::Inet { host, port, only: None })
    }

    fn ip(text: &str) -> Host {
        Host::Ip(text.parse().unwrap())
    }

    #[track_caller]
    fn listen(network: &str, address: &str, expected: &[&str]) {
        let addresses = listen_addresses(&parse(network, address).unwrap()).unwrap();
        let texts: Vec<String> =
            addresses.iter().map(|address| address.as_socket().unwrap().to_string()).collect();
        assert_eq!(texts, expected);
    }

    fn unix(address: &str) -> SockAddr {
        listen_addresses(&parse("unix", address).unwrap()).unwrap().remove(0)
    }

    fn endpoint(family: u8, address: &str, port: u16) -> Endpoint {
        Endpoint { family, address: address.to_owned(), port }
    }

    #[test]
    fn addresses_are_written_as_in_go() {
        assert_eq!(parse("tcp", ":8080"), inet(Host::Any, 8080));
        assert_eq!(parse("tcp", "127.0.0.1:0"), inet(ip("127.0.0.1"), 0));
        assert_eq!(parse("tcp", "[::1]:8080"), inet(ip("::1"), 8080));
        assert_eq!(parse("tcp", "localhost:65535"), inet(Host::Localhost, 65535));
        assert_eq!(parse("tcp", "LocalHost:1"), inet(Host::Localhost, 1));
        assert_eq!(parse("tcp", "db.example:5432"), inet(Host::Name("db.example".into()), 5432));
        assert_eq!(parse("unix", "/run/app.sock"), Ok(Target::Path("/run/app.sock".into())));
        assert_eq!(parse("unix", "app:1"), Ok(Target::Path("app:1".into())));
        assert_eq!(parse("unix", "@abstract"), Ok(Target::Abstract(b"abstract".into())));
    }

    #[test]
    fn another_network_is_an_error_of_its_own() {
        for network in ["", "udp", "TCP", "tcp5", "unixgram"] {
            assert_eq!(parse(network, ":80"), Err(AddressError::UnknownNetwork));
        }
    }

    #[test]
    fn a_port_is_digits_up_to_65535() {
        for address in
            ["a:", "a:65536", "a:99999999999", "a:-1", "a:+80", "a:http", "a: 80", "a:80 ", "a:0x1", "a:٣"]
        {
            assert_eq!(parse("tcp", address), Err(AddressError::InvalidPort), "{address}");
        }
        for address in ["", "localhost", "8080", "[::1]", "[::1]8080", "[::1]x:80"] {
            assert_eq!(parse("tcp", address), Err(AddressError::MissingPort), "{address}");
        }
    }

    #[test]
    fn a_host_is_a_literal_or_a_name() {
        for address in ["::1:80", "a:b:80", "1::80"] {
            assert_eq!(parse("tcp", address), Err(AddressError::TooManyColons), "{address}");
        }
        for address in
            ["[]:80", "[::1:80", "[localhost]:80", "[fe80::1%eth0]:80", "a b:80", "a/b:80", "a]:80", "@a:80"]
        {
            assert_eq!(parse("tcp", address), Err(AddressError::InvalidHost), "{address}");
        }
        assert_eq!(parse("tcp", "a\0b:80"), Err(AddressError::NulByte));
    }

    #[test]
    fn a_literal_belongs_to_its_network() {
        assert!(parse("tcp4", "127.0.0.1:1").is_ok() && parse("tcp6", "[::1]:1").is_ok());
        assert_eq!(parse("tcp4", "[::1]:1"), Err(AddressError::WrongFamily));
        assert_eq!(parse("tcp6", "127.0.0.1:1"), Err(AddressError::WrongFamily));
    }

    #[test]
    fn a_unix_address_has_1_to_107_bytes_and_no_nul() {
        let longest = "x".repeat(UNIX_MAX);
        for prefix in ["", "@"] {
            assert!(listen_addresses(&parse("unix", &format!("{prefix}{longest}")).unwrap()).is_ok());
            assert_eq!(parse("unix", &format!("{prefix}{longest}x")), Err(AddressError::PathTooLong));
            assert_eq!(parse("unix", &format!("{prefix}a\0")), Err(AddressError::NulByte));
            assert_eq!(parse("unix", prefix), Err(AddressError::EmptyPath));
        }
    }

    #[test]
    fn only_names_need_a_resolver() {
        assert_eq!(host_to_resolve("tcp", "db:1"), Ok(Some("db".into())));
        for (network, address) in
            [("tcp", ":1"), ("tcp", "localhost:1"), ("tcp6", "[::1]:1"), ("unix", "db:1")]
        {
            assert_eq!(host_to_resolve(network, address), Ok(None));
        }
        assert_eq!(host_to_resolve("tcp", "db"), Err(AddressError::MissingPort));
        assert_eq!(listen_addresses(&parse("tcp", "db:1").unwrap()).unwrap_err(), AddressError::Unresolved);
    }

    #[test]
    fn no_host_is_all_addresses_and_localhost_is_the_loopback() {
        listen("tcp", ":80", &["[::]:80", "0.0.0.0:80"]);
        listen("tcp4", ":80", &["0.0.0.0:80"]);
        listen("tcp6", ":80", &["[::]:80"]);
        listen("tcp", "localhost:80", &["127.0.0.1:80"]);
        listen("tcp4", "localhost:80", &["127.0.0.1:80"]);
        listen("tcp6", "localhost:80", &["[::1]:80"]);
        listen("tcp", "[::1]:80", &["[::1]:80"]);
        listen("tcp", "127.0.0.9:0", &["127.0.0.9:0"]);
    }

    #[track_caller]
    fn dial(network: &str, address: &str, resolved: &[&str], local: Option<&str>, expected: &[&str]) {
        let resolved = resolved.iter().map(|ip| ip.to_string()).collect::<Vec<_>>();
        let local = local.map(|local| Local::parse(network, local).unwrap());
        let addresses =
            dial_addresses(&parse(network, address).unwrap(), &resolved, local.as_ref()).unwrap_or_default();
        let text = |address: &SockAddr| address.as_socket().unwrap().to_string();
        assert_eq!(addresses.iter().map(text).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_families_of_a_name_take_turns_beginning_with_the_resolvers_first() {
        let six = ["::1", "::2", "::3"];
        let mixed = [&six[..], &["1.1.1.1"]].concat();
        dial("tcp", "a:8", &mixed, None, &["[::1]:8", "1.1.1.1:8", "[::2]:8", "[::3]:8"]);
        dial("tcp", "a:8", &["1.1.1.1", "1.1.1.2", "::1"], None, &["1.1.1.1:8", "[::1]:8", "1.1.1.2:8"]);
        dial("tcp4", "a:8", &mixed, None, &["1.1.1.1:8"]);
        dial("tcp6", "a:8", &mixed, None, &["[::1]:8", "[::2]:8", "[::3]:8"]);
        dial("tcp", "a:8", &["nonsense", "1.1.1.1"], None, &["1.1.1.1:8"]);
        dial("tcp", "a:8", &[], None, &[]);
        assert_eq!(
            dial_addresses(&parse("tcp", "a:8").unwrap(), &vec!["::1".into(); 1000], None).unwrap().len(),
            64
        );
    }

    #[test]
    fn no_host_and_localhost_are_this_machine_and_a_literal_is_itself() {
        for host in ["", "localhost"] {
            dial("tcp", &format!("{host}:8"), &[], None, &["127.0.0.1:8", "[::1]:8"]);
            dial("tcp4", &format!("{host}:8"), &[], None, &["127.0.0.1:8"]);
            dial("tcp6", &format!("{host}:8"), &[], None, &["[::1]:8"]);
        }
        dial("tcp", "[fe80::1]:8", &["1.1.1.1"], None, &["[fe80::1]:8"]);
    }

    #[test]
    fn a_local_address_leaves_only_what_it_can_reach() {
        dial("tcp", "localhost:8", &[], Some("127.0.0.2"), &["127.0.0.1:8"]);
        dial("tcp", "localhost:8", &[], Some("[::1]:9"), &["[::1]:8"]);
        dial("tcp", "localhost:8", &[], Some(":9"), &["127.0.0.1:8", "[::1]:8"]);
        let wrong = host_to_dial("tcp", "127.0.0.1:8", Some("::1"));
        assert_eq!(wrong, Err(AddressError::WrongFamily));
    }

    #[test]
    fn a_local_address_is_a_host_with_or_without_a_port() {
        for (text, expected) in [
            ("127.0.0.1", "127.0.0.1:0"),
            ("127.0.0.1:7", "127.0.0.1:7"),
            ("::1", "[::1]:0"),
            ("[::1]", "[::1]:0"),
            ("[::1]:7", "[::1]:7"),
            ("localhost", "127.0.0.1:0"),
            ("localhost:7", "127.0.0.1:7"),
            (":7", "0.0.0.0:7"),
        ] {
            let remote = if expected.starts_with('[') { "[::1]:1" } else { "127.0.0.1:1" };
            let remote = SockAddr::from(remote.parse::<SocketAddr>().unwrap());
            let bound = Local::parse("tcp", text).unwrap().address_for(&remote).unwrap();
            assert_eq!(bound.as_socket().unwrap().to_string(), expected, "{text}");
        }
        for (network, text, error) in [
            ("tcp", "name", AddressError::Unresolved),
            ("tcp", "name:7", AddressError::Unresolved),
            ("tcp", "127.0.0.1:", AddressError::InvalidPort),
            ("tcp", "127.0.0.1:65536", AddressError::InvalidPort),
            ("tcp", "[127.0.0.1", AddressError::InvalidHost),
            ("tcp", "1::2::3:7", AddressError::TooManyColons),
            ("tcp4", "::1", AddressError::WrongFamily),
            ("tcp6", "127.0.0.1", AddressError::WrongFamily),
            ("unix", "/run/app.sock", AddressError::WrongFamily),
        ] {
            assert_eq!(Local::parse(network, text), Err(error), "{text}");
        }
    }

    #[test]
    fn only_a_name_to_dial_needs_a_resolver() {
        assert_eq!(host_to_dial("tcp", "db:1", None), Ok(Some("db".into())));
        for (network, address) in
            [("tcp", "localhost:1"), ("tcp", ":1"), ("tcp6", "[::1]:1"), ("unix", "@db")]
        {
            assert_eq!(host_to_dial(network, address, None), Ok(None));
        }
        assert_eq!(host_to_dial("tcp", "db:1", Some("db")), Err(AddressError::Unresolved));
    }

    #[test]
    fn an_endpoint_survives_the_address_table() {
        for (text, family) in [("1.2.3.4:80", 4), ("[1:2:3:4:5:6:7:8]:65535", 6), ("[::ffff:1.2.3.4]:0", 6)] {
            let socket: SocketAddr = text.parse().unwrap();
            let expected = endpoint(family, &socket.ip().to_string(), socket.port());
            assert_eq!(decode(encode(&socket.into())), Some(expected.clone()));
            assert_eq!(Endpoint::of(&socket.into()), expected);
        }
    }

    #[test]
    fn a_link_local_endpoint_keeps_its_interface() {
        let socket = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 0, 3));
        assert_eq!(Endpoint::of(&socket.into()), endpoint(6, "fe80::1%3", 9));
        assert_eq!(decode(encode(&socket.into())), Some(Endpoint::of(&socket.into())));
    }

    #[test]
    fn words_that_are_no_endpoint_are_none() {
        for head in [0, 2, 5, 80 << 16, 0x104, 0xffff] {
            assert_eq!(decode([head, 0, 0, 0, 0, 0]), None);
        }
    }

    #[test]
    fn the_kernel_gives_a_unix_address_back_as_it_was_written() {
        let name = format!("@netpoll-address-{}", std::process::id());
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        assert_eq!(Endpoint::of(&socket.local_addr().unwrap()), endpoint(1, "", 0));
        socket.bind(&unix(&name)).unwrap();
        assert_eq!(Endpoint::of(&socket.local_addr().unwrap()), endpoint(1, &name, 0));
        assert_eq!(Endpoint::of(&unix("/run/app.sock")), endpoint(1, "/run/app.sock", 0));
        assert_eq!(decode(encode(&unix(&name))), Some(endpoint(1, "", 0)));
    }

    /// A text of that meaning.
    fn written(target: &Target) -> String {
        let (host, port) = match target {
            Target::Path(path) => return path.to_str().unwrap().to_owned(),
            Target::Abstract(name) => return format!("@{}", std::str::from_utf8(name).unwrap()),
            Target::Inet { host, port, .. } => (host, port),
        };
        match host {
            Host::Any => format!(":{port}"),
            Host::Localhost => format!("localhost:{port}"),
            Host::Ip(ip) => SocketAddr::new(*ip, *port).to_string(),
            Host::Name(name) => format!("{name}:{port}"),
        }
    }

    /// The first byte chooses the network and whether the others are a text or letters of one that looks like an address.
    fn any_text(bytes: &[u8]) {
        const LETTERS: &[u8; 32] = b"0123456789:.[]@/%-abcdefx \0:.:11";
        let Some((first, rest)) = bytes.split_first() else { return };
        let network = ["tcp", "tcp4", "tcp6", "unix"][*first as usize % 4];
        let text = match first & 0x80 {
            0 => String::from_utf8_lossy(rest).into_owned(),
            _ => rest.iter().map(|byte| char::from(LETTERS[*byte as usize % LETTERS.len()])).collect(),
        };
        let local = text.get(text.len() / 2..);
        let _ = (host_to_resolve(network, &text), host_to_dial(network, &text, local));
        let Ok(target) = parse(network, &text) else { return };
        assert_eq!(parse(network, &written(&target)).as_ref(), Ok(&target), "{text:?}");
        let Ok(addresses) = listen_addresses(&target) else { return };
        for address in addresses {
            let endpoint = Endpoint::of(&address);
            match target {
                Target::Inet { .. } => assert_eq!(decode(encode(&address)), Some(endpoint), "{text:?}"),
                _ => assert_eq!(endpoint.address, text),
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_means_what_it_says(bytes in proptest::collection::vec(any::<u8>(), 0..150)) {
            any_text(&bytes);
        }

        #[test]
        fn every_socket_address_survives_its_text_and_its_words(address: SocketAddr) {
            let known = SockAddr::from(address);
            let endpoint = Endpoint::of(&known);
            prop_assert_eq!(decode(encode(&known)), Some(endpoint));
            let plain = SocketAddr::new(address.ip(), address.port());
            prop_assert_eq!(parse("tcp", &plain.to_string()), inet(Host::Ip(plain.ip()), plain.port()));
        }

        #[test]
        fn any_words_are_an_endpoint_or_none(words: [u32; 6]) {
            let family = decode(words).map(|endpoint| u32::from(endpoint.family));
            prop_assert!(family.is_none_or(|family| family == words[0] & 0xffff));
        }
    }
}
