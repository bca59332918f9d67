//! Where calls may go: origins by name, and of their addresses only those that the configuration permits.
//!
//! The name of a host is no protection, as whoever owns the name says where it leads, and can say something else a
//! moment later. So each entry of the allow-list has a resolver of its own, and what it gives is checked and then
//! connected to, without asking twice.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// Scheme, host and port; what a secret or a permission is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    scheme: String,
    host: Host<String>,
    port: u16,
}

impl Origin {
    /// Of a URL.
    pub fn of(url: &Url) -> Result<Self, String> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("\"{}:\" is not called; http and https are", url.scheme()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it has a user or a password before the host; give a header with a secret".into());
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err("it has no host".into());
        };
        let host = match host.to_owned() {
            // "example.com." is the same host, and would otherwise be another name for the lists.
            Host::Domain(name) => Host::Domain(name.trim_end_matches('.').to_owned()),
            address => address,
        };
        if host == Host::Domain(String::new()) {
            return Err("it has no host".into());
        }
        Ok(Self { scheme: url.scheme().to_owned(), host, port })
    }

    /// From a text such as `https://cloud.example:8443`, and nothing more than that.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("\"{text}\" is no origin: {error}"))?;
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if !bare {
            return Err(format!("\"{text}\" is more than an origin; it looks like https://host:port"));
        }
        Self::of(&url).map_err(|wrong| format!("\"{text}\" is no origin: {wrong}"))
    }

    /// The address, if the host is one and not a name.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        match &self.host {
            Host::Domain(_) => None,
            Host::Ipv4(address) => Some((*address).into()),
            Host::Ipv6(address) => Some((*address).into()),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}

/// The addresses that one entry of the allow-list may lead to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Networks {
    /// Also 10/8, 172.16/12, 192.168/16 and fc00::/7.
    pub private: bool,
    /// Also these, whatever they are.
    pub networks: Vec<IpNet>,
}

impl Networks {
    /// Why an address is not called; nothing if it is.
    pub fn refusal(&self, address: IpAddr) -> Option<&'static str> {
        // The same address in another spelling: it is called, and so judged, as IPv4.
        let address = match address {
            IpAddr::V6(six) => six.to_ipv4_mapped().map_or(address, IpAddr::V4),
            IpAddr::V4(_) => address,
        };
        if self.networks.iter().any(|network| network.contains(&address)) {
            return None;
        }
        match kind(address)? {
            PRIVATE if self.private => None,
            kind => Some(kind),
        }
    }
}

const PRIVATE: &str = "is a private address";

/// What is special about an address; nothing if it is one of the internet's.
fn kind(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(four) => kind_of_four(four),
        IpAddr::V6(six) => kind_of_six(six),
    }
}

/// Where clouds tell machines their credentials; not all of them are private addresses.
const METADATA: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

fn kind_of_four(four: Ipv4Addr) -> Option<&'static str> {
    if METADATA.contains(&four.into()) {
        return Some("is the metadata service of a cloud");
    }
    let kind = match four.octets() {
        [0, ..] => "is unspecified",
        [127, ..] => "is this machine",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => PRIVATE,
        [100, 64..=127, ..] => "is behind a carrier's NAT",
        [169, 254, ..] => "is link-local",
        [192, 0, 0, _] | [192, 0, 2, _] | [192, 88, 99, _] => "is reserved",
        [198, 18..=19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => "is reserved",
        [224..=239, ..] => "is multicast",
        [240..=255, ..] => "is reserved",
        _ => return None,
    };
    Some(kind)
}

fn kind_of_six(six: Ipv6Addr) -> Option<&'static str> {
    if METADATA.contains(&six.into()) {
        return Some("is the metadata service of a cloud");
    }
    let kind = match six.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => "is unspecified",
        [0, 0, 0, 0, 0, 0, 0, 1] => "is this machine",
        [0x64, 0xff9b, ..] => "is an IPv4 address behind NAT64",
        [0x2002, ..] => "is an IPv4 address in 6to4",
        [0x2001, 0..=0x1ff, ..] => "is a tunnel or reserved",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "is reserved",
        [0xfe80..=0xfebf, ..] => "is link-local",
        [0xfc00..=0xfdff, ..] => PRIVATE,
        [0xff00..=0xffff, ..] => "is multicast",
        [0x2000..=0x3fff, ..] => return None,
        // What is not given out is nobody's, or is an old way of writing an IPv4 address.
        _ => "is not one of the internet's",
    };
    Some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |text: &str| Origin::parse(text).unwrap();
        assert_eq!(origin("https://Cloud.Example"), origin("https://cloud.example:443/"));
        assert_eq!(origin("https://cloud.example."), origin("https://cloud.example"));
        assert_ne!(origin("https://cloud.example"), origin("http://cloud.example"));
        assert_ne!(origin("https://cloud.example"), origin("https://cloud.example:8443"));
        for wrong in [
            "ftp://a",
            "https://a/b",
            "https://me@a",
            "https://a?b",
            "https://a#b",
            "a",
            "https://",
            "https://.",
        ] {
            assert!(Origin::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_the_internets_is_refused_unless_it_is_permitted() {
        let nothing = Networks::default();
        let private = Networks { private: true, ..Networks::default() };
        let refused = |networks: &Networks, text: &str| networks.refusal(text.parse().unwrap()).is_some();
        for text in ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "172.15.0.1", "172.32.0.1", "100.63.0.1"]
        {
            assert!(!refused(&nothing, text), "{text}");
        }
        for text in ["10.0.0.1", "172.16.0.1", "192.168.1.1", "fd12::1", "::ffff:10.0.0.1"] {
            assert!(refused(&nothing, text) && !refused(&private, text), "{text}");
        }
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "::ffff:0:7f00:1",
            "100::1",
            "2001:db8::1",
            "5f00::1",
        ] {
            assert!(refused(&nothing, text) && refused(&private, text), "{text}");
        }
        let loopback = Networks { networks: vec!["127.0.0.0/8".parse().unwrap()], ..Networks::default() };
        assert!(!refused(&loopback, "127.0.0.1") && !refused(&loopback, "::ffff:127.0.0.1"));
        assert!(refused(&loopback, "10.0.0.1") && refused(&loopback, "::1"));
    }
}
