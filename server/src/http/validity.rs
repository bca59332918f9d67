//! From when to when a certificate is good. The library for TLS knows it and does not say, and what is needed of X.509 for
//! it is one way through nested lengths.

use chrono::{DateTime, NaiveDateTime, Utc};

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Its first and its last moment; `None` if it cannot be read.
pub(super) fn validity(certificate: &[u8]) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
    let mut outer = certificate;
    let mut certificate = take(&mut outer, SEQUENCE)?;
    let mut signed = take(&mut certificate, SEQUENCE)?;
    // The version may be left out; then the serial number, the algorithm and the issuer, then the validity.
    if signed.first() == Some(&VERSION) {
        take(&mut signed, VERSION)?;
    }
    take(&mut signed, INTEGER)?;
    take(&mut signed, SEQUENCE)?;
    take(&mut signed, SEQUENCE)?;
    let mut validity = take(&mut signed, SEQUENCE)?;
    Some((time(&mut validity)?, time(&mut validity)?))
}

/// The content of the next value, which has to be of this kind.
fn take<'a>(from: &mut &'a [u8], kind: u8) -> Option<&'a [u8]> {
    let (first, rest) = from.split_first()?;
    if *first != kind {
        return None;
    }
    let (length, rest) = length(rest)?;
    let (content, rest) = rest.split_at_checked(length)?;
    *from = rest;
    Some(content)
}

fn length(from: &[u8]) -> Option<(usize, &[u8])> {
    let (first, rest) = from.split_first()?;
    if *first < 0x80 {
        return Some((usize::from(*first), rest));
    }
    let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
    if bytes.is_empty() || bytes.len() > 4 {
        return None;
    }
    Some((bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest))
}

fn time(from: &mut &[u8]) -> Option<DateTime<Utc>> {
    let kind = *from.first()?;
    let text = std::str::from_utf8(take(from, kind)?).ok()?;
    let text = match kind {
        // Two digits of a year: up to 49 they are of this century.
        UTC_TIME => {
            let century = if text.get(..2)?.parse::<u8>().ok()? < 50 { "20" } else { "19" };
            format!("{century}{text}")
        }
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%SZ").ok().map(|time| time.and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(from: i32, to: i32) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 2);
        params.not_after = rcgen::date_time_ymd(to, 3, 4);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn both_forms_of_years_are_read() {
        for (from, to) in [(1999, 2049), (2001, 2050), (2051, 2100)] {
            let (begin, end) = validity(&made(from, to)).unwrap();
            let read = (begin.format("%F").to_string(), end.format("%F").to_string());
            assert_eq!(read, (format!("{from}-01-02"), format!("{to}-03-04")));
        }
    }

    #[test]
    fn what_is_cut_off_or_changed_is_no_panic() {
        let good = made(2020, 2030);
        for length in 0..good.len() {
            let _ = validity(&good[..length]);
        }
        for at in 0..good.len().min(200) {
            for value in [0, 0x7f, 0x80, 0x84, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = validity(&bad);
            }
        }
        assert_eq!(validity(b""), None);
    }
}
