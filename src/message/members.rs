//! The members of a chunk as they travel between the loops: records of one size, one after the other. As separate msgpack
//! values each of ten fields would be decoded by its type byte, twice per request.

use std::fmt;

use serde::de::Visitor;
use serde::{Deserializer, Serializer};

use super::{Member, OnBadRow, ReplyTo, RequestId, Serial};

const STREAM: u8 = 1;
const WHOLE: u8 = 2;
const REPORT: u8 = 4;
/// Seven numbers, where the answer goes, and a byte of flags.
const RECORD_BYTES: usize = 7 * 8 + 16 + 1;

pub(super) fn serialize<S: Serializer>(
    members: &[Member],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut records = Vec::with_capacity(members.len() * RECORD_BYTES);
    for member in members.iter() {
        let numbers = [
            member.serial.0,
            member.request.0,
            member.offset,
            member.rows,
            member.total,
            member.arrived_us,
            member.queue_us,
        ];
        for number in numbers {
            records.extend_from_slice(&number.to_le_bytes());
        }
        records.extend_from_slice(&member.reply.0);
        let stream = if member.stream { STREAM } else { 0 };
        let whole = if member.whole { WHOLE } else { 0 };
        let report = match member.on_bad_row {
            OnBadRow::Fail => 0,
            OnBadRow::Report => REPORT,
        };
        records.push(stream | whole | report);
    }
    serializer.serialize_bytes(&records)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Member>, D::Error> {
    struct Records;

    impl Visitor<'_> for Records {
        type Value = Vec<Member>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "members of {RECORD_BYTES} bytes each")
        }

        fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Vec<Member>, E> {
            let records = bytes.chunks(RECORD_BYTES).map(read);
            let members: Option<Vec<Member>> = records.collect();
            members.ok_or_else(|| E::invalid_length(bytes.len(), &self))
        }
    }

    deserializer.deserialize_bytes(Records)
}

fn read(record: &[u8]) -> Option<Member> {
    let mut rest = record;
    let mut number = || {
        let (bytes, behind) = rest.split_first_chunk()?;
        rest = behind;
        Some(u64::from_le_bytes(*bytes))
    };
    let (serial, request) = (Serial(number()?), RequestId(number()?));
    let (offset, rows, total) = (number()?, number()?, number()?);
    let (arrived_us, queue_us) = (number()?, number()?);
    let (reply, rest) = rest.split_first_chunk()?;
    let flags = *rest.first()?;
    Some(Member {
        serial,
        reply: ReplyTo(*reply),
        request,
        offset,
        rows,
        total,
        stream: flags & STREAM != 0,
        whole: flags & WHOLE != 0,
        on_bad_row: match flags & REPORT {
            0 => OnBadRow::Fail,
            _ => OnBadRow::Report,
        },
        arrived_us,
        queue_us,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    struct Header {
        #[serde(with = "super")]
        members: Vec<Member>,
    }

    #[test]
    fn members_come_as_they_were_sent_and_cut_ones_do_not() {
        let members: Vec<Member> = (0..3u64)
            .map(|i| Member {
                serial: Serial(i),
                reply: ReplyTo([i as u8 + 1; 16]),
                request: RequestId(u64::MAX - i),
                offset: i * 7,
                rows: i + 1,
                total: i + 2,
                stream: i == 1,
                whole: i == 2,
                on_bad_row: match i {
                    0 => OnBadRow::Report,
                    _ => OnBadRow::Fail,
                },
                arrived_us: i * 1_000_000,
                queue_us: i,
            })
            .collect();
        for count in 0..=members.len() {
            let header = Header {
                members: members[..count].to_vec(),
            };
            let bytes = rmp_serde::to_vec(&header).unwrap();
            let read: Header = rmp_serde::from_slice(&bytes).unwrap();
            assert_eq!(read.members, members[..count]);
        }
        let short = rmp_serde::to_vec(&[serde_bytes_of(RECORD_BYTES - 1)]).unwrap();
        assert!(rmp_serde::from_slice::<Header>(&short).is_err());
    }

    fn serde_bytes_of(count: usize) -> impl Serialize {
        struct Raw(usize);
        impl Serialize for Raw {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_bytes(&vec![0; self.0])
            }
        }
        Raw(count)
    }
}
