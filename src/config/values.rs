//! Parses the values of flags: sizes, device maps, fractions, addresses.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::model::Device;

const KIB: u64 = 1024;
pub(super) const MIB: u64 = 1024 * KIB;
pub(super) const GIB: u64 = 1024 * MIB;

/// A list of devices, in the order in which workers get them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceMap(pub Vec<Device>);

impl FromStr for DeviceMap {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceMap, String> {
        text.split(',')
            .map(|entry| Device::parse(entry.trim()))
            .collect::<Result<_, _>>()
            .map(DeviceMap)
    }
}

impl fmt::Display for DeviceMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, device) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(&device.entry())?;
        }
        Ok(())
    }
}

/// A size in bytes, at least 1; typed as `1000000`, `64MiB` or `1GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// The most that a size may be: sums of a few of them stay far below 2^63, which is where ZeroMQ's own limit ends.
const MAX_SIZE: u64 = 1024 * 1024 * GIB;

const UNITS: [(&str, u64); 9] = [
    ("KiB", KIB),
    ("MiB", MIB),
    ("GiB", GIB),
    ("TiB", 1024 * GIB),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim();
        let scale = match unit {
            "" => Some(1),
            unit => UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                .map(|(_, scale)| *scale),
        };
        let (Some(scale), false) = (scale, number.is_empty()) else {
            return Err(
                "expected bytes, or a whole number with KiB, MiB, GiB, TiB, kB, MB, GB or TB, such as 64MiB"
                    .to_owned(),
            );
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(scale))
            .filter(|bytes| (1..=MAX_SIZE).contains(bytes))
            .map(Size)
            .ok_or_else(|| format!("a size is 1 to {}", Size(MAX_SIZE)))
    }
}

impl fmt::Display for Size {
    /// The same number in the largest binary unit that leaves it whole, so that it reads back as it was.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = UNITS[..4]
            .iter()
            .rev()
            .find(|(_, scale)| self.0 >= *scale && self.0.is_multiple_of(*scale))
            .unwrap_or(&("", 1));
        write!(f, "{}{unit}", self.0 / scale)
    }
}

/// A whole number in a range, as a flag's value: what is wrong with another is said with the range.
pub fn whole<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text: &str| {
        let number = text.trim().parse::<u64>().ok();
        number
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| {
                format!(
                    "expected a whole number from {} to {}",
                    range.start(),
                    range.end()
                )
            })
    }
}

/// A switch's value.
///
/// # Errors
/// The words that there are for it.
pub fn switch(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err("expected true or false (yes or no, on or off, 1 or 0)".to_owned()),
    }
}

/// A number from 0 to 1.
pub(super) fn fraction(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        // NaN is in no range.
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("expected a number from 0 to 1, such as 0.2".to_owned()),
    }
}

/// An address that can be bound, bare: no name to look up, no brackets.
pub(super) fn host(text: &str) -> Result<String, String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(text);
    // ZeroMQ binds addresses, not names; this name is the one that everybody types.
    if bare.eq_ignore_ascii_case("localhost") {
        return Ok("127.0.0.1".to_owned());
    }
    bare.parse::<std::net::IpAddr>()
        .map(|_| bare.to_owned())
        .map_err(|_| {
            "expected an IPv4 or IPv6 address or localhost; 0.0.0.0 is every IPv4 address, :: every one"
                .to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_map_keeps_its_order_and_refuses_what_is_no_device() {
        let parse = |text: &str| text.parse::<DeviceMap>().map(|map| map.0);
        assert_eq!(parse("-1"), Ok(vec![Device::Cpu]));
        assert_eq!(
            parse("3,0, 1,0"),
            Ok(vec![
                Device::Cuda(3),
                Device::Cuda(0),
                Device::Cuda(1),
                Device::Cuda(0)
            ])
        );
        assert_eq!(parse("-1,0"), Ok(vec![Device::Cpu, Device::Cuda(0)]));
        assert_eq!(parse("cpu, cuda:0"), parse("-1,0"));
        for bad in [
            "", "a", "-2", "0,", ",0", "0;1", "+1", "1.5", "70000", "cuda", "cuda:0;1", "--port",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
        assert_eq!(
            parse("2,-1,0").map(DeviceMap).map(|m| m.to_string()),
            Ok("2,-1,0".to_owned())
        );
    }

    #[test]
    fn sizes_are_read_in_every_unit_and_printed_so_that_they_read_back() {
        let parse = |text: &str| text.parse::<Size>().map(|size| size.0);
        for (text, bytes) in [
            ("1000000", 1_000_000),
            ("1B", 1),
            ("64MiB", 64 * MIB),
            ("64 mib", 64 * MIB),
            ("1GiB", GIB),
            ("2KiB", 2048),
            ("3kB", 3000),
            ("1MB", 1_000_000),
            ("1GB", 1_000_000_000),
            ("1TiB", 1024 * GIB),
            ("1TB", 1_000_000_000_000),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
            assert_eq!(parse(&Size(bytes).to_string()), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "0",
            "MiB",
            "-1",
            "1.5GiB",
            "64M",
            "64MiBs",
            "99999999999999999999",
            "9999999999TiB",
            "1e6",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
        assert_eq!(Size(512 * MIB).to_string(), "512MiB");
        assert_eq!(Size(1_000_001).to_string(), "1000001");
    }

    #[test]
    fn what_is_no_number_or_out_of_range_is_told_the_range() {
        let port = whole::<u16>(1..=65535);
        assert_eq!((port("1"), port("65535")), (Ok(1), Ok(65535)));
        for bad in ["abc", "", "-3", "0", "65536", "1.5", "99999999999999999999"] {
            let e = port(bad).unwrap_err();
            assert_eq!(e, "expected a whole number from 1 to 65535", "{bad:?}");
        }
        assert_eq!((switch("Yes"), switch("0")), (Ok(true), Ok(false)));
        assert!(switch("perhaps").unwrap_err().contains("true or false"));
    }

    #[test]
    fn a_fraction_is_a_number_from_0_to_1() {
        assert_eq!(fraction("0"), Ok(0.0));
        assert_eq!(fraction("1.0"), Ok(1.0));
        for bad in ["NaN", "nan", "-0.1", "1.01", "inf", "", "20%"] {
            assert!(fraction(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_host_is_an_address() {
        assert_eq!(host("localhost").as_deref(), Ok("127.0.0.1"));
        assert_eq!(host("[::1]").as_deref(), Ok("::1"));
        assert_eq!(host("0.0.0.0").as_deref(), Ok("0.0.0.0"));
        for bad in [
            "",
            "*",
            "example.org",
            "127.0.0.1:5555",
            "[::1",
            "tcp://127.0.0.1",
        ] {
            assert!(host(bad).is_err(), "{bad:?} was taken");
        }
    }
}
