//! Reads msgpack without building values: items borrow from the bytes. Clients' headers are checked with it.
//!
//! Not the `rmp` crate: that reads single items, and here whole values have to be skipped in one loop, however long and
//! deep they are. The format: <https://github.com/msgpack/msgpack/blob/master/spec.md>.

/// One item. The values of an array and the keys and values of a map follow it, as many as it says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Item<'a> {
    Nil,
    Bool(bool),
    /// 0 or more, whatever its width and sign.
    Unsigned(u64),
    Negative(i64),
    Float(f64),
    /// Said to be UTF-8.
    Text(&'a [u8]),
    Binary(&'a [u8]),
    Extension,
    Array(u32),
    Map(u32),
}

impl Item<'_> {
    /// What it is, for errors.
    pub(super) fn name(self) -> &'static str {
        match self {
            Item::Nil => "nil",
            Item::Bool(_) => "a boolean",
            Item::Unsigned(_) => "a number",
            Item::Negative(_) => "a negative number",
            Item::Float(_) => "a float",
            Item::Text(_) => "a string",
            Item::Binary(_) => "bytes",
            Item::Extension => "an extension",
            Item::Array(_) => "an array",
            Item::Map(_) => "a map",
        }
    }
}

/// What is left to be read.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

/// What is wrong; messages put the field's name before it.
pub(super) type ReadResult<T> = Result<T, String>;

/// Why an item cannot be read. It is small because it is returned for every byte.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum NoItem {
    EndsEarly,
    Unused,
}

impl From<NoItem> for String {
    #[cold]
    fn from(no: NoItem) -> String {
        match no {
            NoItem::EndsEarly => "it ends before its end".to_owned(),
            NoItem::Unused => "the byte 0xc1, which msgpack does not use".to_owned(),
        }
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// What was read is all there is.
    pub(super) fn check_end(&self) -> ReadResult<()> {
        match self.rest.is_empty() {
            true => Ok(()),
            false => Err("something follows behind its end".to_owned()),
        }
    }

    #[inline]
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], NoItem> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(NoItem::EndsEarly)?;
        self.rest = rest;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], NoItem> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// An unsigned number of so many bytes, which come with the highest first.
    fn wide(&mut self, bytes: usize) -> Result<u64, NoItem> {
        let taken = self.take(bytes)?;
        Ok(taken.iter().fold(0, |n, &b| (n << 8) | u64::from(b)))
    }

    /// A length or a count of so many bytes, at most four.
    fn count(&mut self, bytes: usize) -> Result<u32, NoItem> {
        Ok(self.wide(bytes)? as u32)
    }

    /// A length that has so many bytes itself, and the bytes that it counts.
    fn sized(&mut self, bytes: usize) -> Result<&'a [u8], NoItem> {
        let length = self.count(bytes)?;
        self.take(length as usize)
    }

    /// The next item.
    #[inline]
    pub(super) fn item(&mut self) -> Result<Item<'a>, NoItem> {
        let [first] = self.take_array()?;
        let signed =
            |number: i64| u64::try_from(number).map_or(Item::Negative(number), Item::Unsigned);
        Ok(match first {
            0x00..=0x7f => Item::Unsigned(first.into()),
            0x80..=0x8f => Item::Map(u32::from(first & 0x0f)),
            0x90..=0x9f => Item::Array(u32::from(first & 0x0f)),
            0xa0..=0xbf => Item::Text(self.take(usize::from(first & 0x1f))?),
            0xc0 => Item::Nil,
            0xc1 => return Err(NoItem::Unused),
            0xc2 | 0xc3 => Item::Bool(first == 0xc3),
            0xc4..=0xc6 => Item::Binary(self.sized(1 << (first - 0xc4))?),
            0xc7..=0xc9 => {
                let length = self.count(1 << (first - 0xc7))?;
                self.take(1)?; // the extension's type
                self.take(length as usize)?;
                Item::Extension
            }
            0xca => Item::Float(f32::from_be_bytes(self.take_array()?).into()),
            0xcb => Item::Float(f64::from_be_bytes(self.take_array()?)),
            0xcc..=0xcf => Item::Unsigned(self.wide(1 << (first - 0xcc))?),
            0xd0 => signed(i8::from_be_bytes(self.take_array()?).into()),
            0xd1 => signed(i16::from_be_bytes(self.take_array()?).into()),
            0xd2 => signed(i32::from_be_bytes(self.take_array()?).into()),
            0xd3 => signed(i64::from_be_bytes(self.take_array()?)),
            0xd4..=0xd8 => {
                self.take(1 + (1 << (first - 0xd4)))?;
                Item::Extension
            }
            0xd9..=0xdb => Item::Text(self.sized(1 << (first - 0xd9))?),
            0xdc | 0xdd => Item::Array(self.count(2 << (first - 0xdc))?),
            0xde | 0xdf => Item::Map(self.count(2 << (first - 0xde))?),
            0xe0..=0xff => Item::Negative((first as i8).into()),
        })
    }

    /// Skips what an item holds.
    pub(super) fn skip_inside(&mut self, item: Item<'_>) -> ReadResult<()> {
        let inside = |item: Item<'_>| match item {
            Item::Array(values) => u64::from(values),
            Item::Map(entries) => 2 * u64::from(entries),
            _ => 0,
        };
        // Each value takes a byte at least, so that the number cannot grow out of bounds.
        let mut left = inside(item);
        while left > 0 {
            left += inside(self.item()?);
            left -= 1;
        }
        Ok(())
    }

    /// Skips a value.
    pub(super) fn skip(&mut self) -> ReadResult<()> {
        let item = self.item()?;
        self.skip_inside(item)
    }

    /// Skips a nil, if there is one.
    pub(super) fn skip_nil(&mut self) -> bool {
        let mut ahead = *self;
        let nil = ahead.item() == Ok(Item::Nil);
        if nil {
            *self = ahead;
        }
        nil
    }

    /// A string; bytes that are UTF-8 pass for one.
    pub(super) fn text(&mut self) -> ReadResult<&'a str> {
        match self.item()? {
            Item::Text(bytes) | Item::Binary(bytes) => {
                std::str::from_utf8(bytes).map_err(|e| format!("a string is not UTF-8: {e}"))
            }
            other => Err(unexpected("a string", other)),
        }
    }

    /// As [`Reader::text`], for callers that use few of many strings.
    #[inline]
    pub(super) fn text_bytes(&mut self) -> ReadResult<&'a [u8]> {
        match self.item()? {
            Item::Text(bytes) | Item::Binary(bytes) => {
                check_utf8(bytes)?;
                Ok(bytes)
            }
            other => Err(unexpected("a string", other)),
        }
    }

    pub(super) fn unsigned(&mut self) -> ReadResult<u64> {
        match self.item()? {
            Item::Unsigned(number) => Ok(number),
            other => Err(unexpected("a whole number, 0 or more", other)),
        }
    }

    pub(super) fn boolean(&mut self) -> ReadResult<bool> {
        match self.item()? {
            Item::Bool(value) => Ok(value),
            other => Err(unexpected("a boolean", other)),
        }
    }

    /// How many values follow.
    pub(super) fn array(&mut self) -> ReadResult<u32> {
        match self.item()? {
            Item::Array(values) => Ok(values),
            other => Err(unexpected("an array", other)),
        }
    }

    /// How many keys and values follow.
    pub(super) fn map(&mut self) -> ReadResult<u32> {
        match self.item()? {
            Item::Map(entries) => Ok(entries),
            other => Err(unexpected("a map", other)),
        }
    }
}

/// Most strings are short and ASCII, which is faster seen.
#[inline]
pub(super) fn check_utf8(bytes: &[u8]) -> ReadResult<()> {
    if bytes.is_ascii() {
        return Ok(());
    }
    let text = std::str::from_utf8(bytes);
    text.map(drop)
        .map_err(|e| format!("a string is not UTF-8: {e}"))
}

#[cold]
pub(super) fn unexpected(expected: &str, got: Item<'_>) -> String {
    format!("expected {expected}, got {}", got.name())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    fn length_of_first(bytes: &[u8]) -> Option<usize> {
        let mut reader = Reader::new(bytes);
        reader.skip().ok()?;
        Some(bytes.len() - reader.rest().len())
    }

    #[test]
    fn each_form_is_read_in_each_width() {
        let table: [(&[u8], Item<'_>); 16] = [
            (b"\xd3\xff\xff\xff\xff\xff\xff\xff\xfe", Item::Negative(-2)),
            (b"\xd0\x80", Item::Negative(-128)),
            (b"\xe0", Item::Negative(-32)),
            (b"\xd2\x00\x00\x01\x00", Item::Unsigned(256)),
            (
                b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
                Item::Unsigned(u64::MAX),
            ),
            (b"\xca\x3f\x80\x00\x00", Item::Float(1.0)),
            (b"\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00", Item::Float(1.5)),
            (b"\xda\x00\x01a", Item::Text(b"a")),
            (b"\xdb\x00\x00\x00\x02ab", Item::Text(b"ab")),
            (b"\xc6\x00\x00\x00\x01\xff", Item::Binary(b"\xff")),
            (b"\xc8\x00\x02\x07ab", Item::Extension),
            (b"\xd8\x010123456789abcdef", Item::Extension),
            (b"\xdc\x01\x00", Item::Array(256)),
            (b"\xdd\x00\x00\x00\x03", Item::Array(3)),
            (b"\xde\x00\x02", Item::Map(2)),
            (b"\xdf\x00\x00\x00\x01", Item::Map(1)),
        ];
        for (bytes, expected) in table {
            let mut reader = Reader::new(bytes);
            assert_eq!(reader.item(), Ok(expected), "{bytes:x?}");
            assert!(reader.rest().is_empty(), "{bytes:x?}");
            for end in 0..bytes.len() {
                assert!(Reader::new(&bytes[..end]).item().is_err(), "{bytes:x?}");
            }
        }
        assert!(Reader::new(b"\xc1").item().is_err());
    }

    #[test]
    fn depth_and_promises_cost_nothing() {
        let mut deep = vec![0x91; 200_000];
        assert_eq!(length_of_first(&deep), None);
        deep.push(0xc0);
        assert_eq!(length_of_first(&deep), Some(200_001));
        assert_eq!(length_of_first(&[0xdf, 0xff, 0xff, 0xff, 0xff, 1]), None);
    }

    /// What rmp-serde passes over; it has no word for extensions that nobody expects.
    fn length_by_serde(bytes: &[u8]) -> Option<usize> {
        let mut source = rmp_serde::Deserializer::new(std::io::Cursor::new(bytes));
        serde::Deserialize::deserialize(&mut source)
            .map(|IgnoredAny| ())
            .ok()?;
        Some(source.position() as usize)
    }

    proptest! {
        #[test]
        fn a_value_ends_where_rmp_serde_says(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0x80u8..0xe0, 0x90u8..0x94], 0..60),
        ) {
            if let Some(length) = length_by_serde(&bytes) {
                prop_assert_eq!(length_of_first(&bytes), Some(length));
            }
        }
    }
}
