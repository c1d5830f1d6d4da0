//! Any text as an address, and any words as an endpoint.

use std::net::{IpAddr, SocketAddr};

use socket2::SockAddr;

use super::bytes::Bytes;
use crate::address::{
    decode, dial_addresses, encode, host_to_dial, host_to_resolve, listen_addresses, parse, AddressError,
    Endpoint, Family, Host, Local, Target,
};

/// Reads an address, one to dial from and the answers of a resolver. What is an address is the same one again when it
/// has been written, what the standard library takes for one is one, and of all that is tried nothing is of a family
/// that was not asked for.
pub fn addresses(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let network = ["tcp", "tcp4", "tcp6", "unix", "udp"][bytes.up_to(4)];
    let words = [(); 6].map(|()| bytes.word());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (address, local) = (text(bytes.counted()), text(bytes.counted()));
    let resolved =
        std::iter::from_fn(|| (!bytes.is_empty()).then(|| text(bytes.counted()))).collect::<Vec<_>>();

    check_words(words);
    let target = parse(network, &address);
    check_against_the_standard_library(network, &address, &target);
    check_resolution(network, &address, &target);
    let local = (!local.is_empty()).then_some(local);
    match &target {
        Ok(target) => {
            assert_eq!(parse(network, &written(target)), Ok(target.clone()), "{address:?}");
            assert!(ends_with_its_port(&address, target), "{address:?}");
            check_listening(target);
            check_dialing(network, target, &resolved, local.as_deref());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// An endpoint is what it was after it has gone through the table.
fn check_words(words: [u32; 6]) {
    let Some(endpoint) = decode(words) else { return };
    assert!([1, 4, 6].contains(&endpoint.family));
    let Ok(ip) = endpoint.address.parse::<IpAddr>() else {
        let is_link_local = endpoint.family == 6 && words[5] != 0 && endpoint.address.contains('%');
        assert!(is_link_local || endpoint == Endpoint::of(&nobody()), "{endpoint:?}");
        return;
    };
    assert_eq!((ip.is_ipv4(), ip.is_ipv6()), (endpoint.family == 4, endpoint.family == 6));
    check_endpoint(&SocketAddr::new(ip, endpoint.port).into(), &endpoint);
}

fn check_endpoint(address: &SockAddr, endpoint: &Endpoint) {
    assert_eq!(Endpoint::of(address), *endpoint);
    match decode(encode(address)) {
        Some(unix) if unix.family == Endpoint::UNIX => {
            assert_eq!((unix.port, endpoint.family), (0, Endpoint::UNIX))
        }
        decoded => assert_eq!(decoded.as_ref(), Some(endpoint)),
    }
}

fn check_against_the_standard_library(network: &str, text: &str, target: &Result<Target, AddressError>) {
    // A literal with a scope is for link-local addresses of one interface, and refused.
    let Some(address) = text.parse::<SocketAddr>().ok().filter(|_| !text.contains('%')) else { return };
    let expected = |only| match only {
        Some(only) if (only == Family::V4) != address.is_ipv4() => Err(AddressError::WrongFamily),
        only => Ok(Target::Inet { host: Host::Ip(address.ip()), port: address.port(), only }),
    };
    match network {
        "tcp" => assert_eq!(*target, expected(None), "{text:?}"),
        "tcp4" => assert_eq!(*target, expected(Some(Family::V4)), "{text:?}"),
        "tcp6" => assert_eq!(*target, expected(Some(Family::V6)), "{text:?}"),
        "unix" => assert!(target.is_ok(), "that is a name of a file too"),
        _ => assert_eq!(*target, Err(AddressError::UnknownNetwork)),
    }
}

/// A resolver is asked for names and for nothing else.
fn check_resolution(network: &str, address: &str, target: &Result<Target, AddressError>) {
    let name = match target {
        Ok(Target::Inet { host: Host::Name(name), .. }) => Ok(Some(name.clone())),
        Ok(_) => Ok(None),
        Err(error) => Err(*error),
    };
    assert_eq!(host_to_resolve(network, address), name);
    assert_eq!(host_to_dial(network, address, None), name);
    let name = name.ok().flatten().unwrap_or_default();
    assert!(!name.contains(|c: char| c == '\0' || c == ':' || c == '%' || c.is_whitespace()), "{name:?}");
    assert!(name.parse::<IpAddr>().is_err(), "{name:?} needs no resolver");
}

fn check_listening(target: &Target) {
    let addresses = match listen_addresses(target) {
        Ok(addresses) => addresses,
        Err(error) => {
            return assert!(error == AddressError::Unresolved && is_name(target), "{target:?}: {error}")
        }
    };
    assert!((1..=2).contains(&addresses.len()), "one for each family");
    assert!(addresses.iter().all(|address| fits(target, address)), "{target:?}: {addresses:?}");
    for address in &addresses {
        let endpoint = Endpoint::of(address);
        if endpoint.family == Endpoint::UNIX {
            // It is lossy only where it was no text.
            assert_eq!(endpoint, Endpoint { family: 1, address: written(target), port: 0 });
        }
        check_endpoint(address, &endpoint);
    }
}

fn check_dialing(network: &str, target: &Target, resolved: &[String], local: Option<&str>) {
    let local = match local.map(|local| Local::parse(network, local)).transpose() {
        Ok(local) => local,
        Err(error) => return assert!(error != AddressError::UnknownNetwork, "the address has the same"),
    };
    let Ok(addresses) = dial_addresses(target, resolved, local.as_ref()) else {
        return assert!(local.is_some() || is_name(target), "{target:?} leads nowhere");
    };
    assert!((1..=64).contains(&addresses.len()) && addresses.iter().all(|address| fits(target, address)));
    if is_name(target) {
        let answers = resolved.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()).collect::<Vec<_>>();
        let is_answer = |address: &SockAddr| address.as_socket().is_some_and(|ip| answers.contains(&ip.ip()));
        assert!(addresses.iter().all(is_answer), "{addresses:?}");
    }
    let Some(local) = local else { return };
    for address in addresses.iter().filter_map(|address| Some((address, address.as_socket()?))) {
        let bound = local.address_for(address.0).unwrap().as_socket().unwrap();
        assert_eq!((bound.is_ipv4(), bound.port()), (address.1.is_ipv4(), local.port));
    }
}

/// Go takes no sign and nothing around the number.
fn ends_with_its_port(text: &str, target: &Target) -> bool {
    let Target::Inet { port, .. } = target else { return true };
    let digits = text.rsplit(':').next().unwrap().trim_start_matches('0');
    digits == port.to_string().trim_start_matches('0')
}

fn is_name(target: &Target) -> bool {
    matches!(target, Target::Inet { host: Host::Name(_), .. })
}

/// Whether an address is of the network, and has the port.
fn fits(target: &Target, address: &SockAddr) -> bool {
    match (target, address.as_socket()) {
        (Target::Inet { port, only, .. }, Some(ip)) => {
            ip.port() == *port && only.is_none_or(|only| (only == Family::V4) == ip.is_ipv4())
        }
        (Target::Path(_) | Target::Abstract(_), None) => address.is_unix(),
        _ => false,
    }
}

/// The target as a text.
fn written(target: &Target) -> String {
    match target {
        Target::Inet { host, port, .. } => match host {
            Host::Any => format!(":{port}"),
            Host::Localhost => format!("localhost:{port}"),
            Host::Ip(ip) => SocketAddr::new(*ip, *port).to_string(),
            Host::Name(name) => format!("{name}:{port}"),
        },
        Target::Path(path) => path.to_str().unwrap().to_owned(),
        Target::Abstract(name) => format!("@{}", std::str::from_utf8(name).unwrap()),
    }
}

fn nobody() -> SockAddr {
    SockAddr::unix("").unwrap()
}
