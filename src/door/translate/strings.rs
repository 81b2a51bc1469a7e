//! Elements that differ in length: bytes with their lengths in front of them, and documents as JSON text.

use bytes::Bytes;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::tensor::{Data, DataType, Tensor, to_document};

/// The bytes of a length.
const LENGTH_BYTES: usize = 4;

/// Elements one after the other, as they are collected.
#[derive(Default)]
pub(crate) struct Elements {
    offsets: Vec<u8>,
    values: Vec<u8>,
}

impl Elements {
    pub(crate) fn new() -> Elements {
        Elements {
            offsets: 0u64.to_le_bytes().to_vec(),
            values: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, element: &[u8]) {
        self.values.extend_from_slice(element);
        let end = self.values.len() as u64;
        self.offsets.extend_from_slice(&end.to_le_bytes());
    }

    /// The bytes that they take so far.
    pub(crate) fn bytes(&self) -> usize {
        self.offsets.len() + self.values.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.offsets.len() / 8 - 1
    }

    pub(crate) fn into_data(self) -> Data {
        Data::Variable {
            offsets: self.offsets.into(),
            values: self.values.into(),
        }
    }
}

/// Elements that have their lengths in front of them. They are copied: ours have all lengths in one place.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the tensor: a length that leads beyond the bytes, or another number of elements.
pub(crate) fn with_lengths(name: &str, elements: usize, bytes: &[u8]) -> Result<Data> {
    let mut read = Elements::new();
    let mut rest = bytes;
    while let Some((length, behind)) = rest.split_first_chunk::<LENGTH_BYTES>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some(element) = behind.get(..length) else {
            return Err(Error::invalid(format!(
                "tensor {name:?}: element {} says that it has {length} bytes, and {} are left",
                read.len(),
                behind.len()
            )));
        };
        if read.len() == elements {
            return Err(Error::invalid(format!(
                "tensor {name:?}: more than the {elements} elements of its shape"
            )));
        }
        read.push(element);
        rest = &behind[length..];
    }
    if !rest.is_empty() {
        return Err(Error::invalid(format!(
            "tensor {name:?}: {} bytes behind element {}, expected {LENGTH_BYTES} of a length",
            rest.len(),
            read.len()
        )));
    }
    if read.len() != elements {
        return Err(Error::invalid(format!(
            "tensor {name:?}: {} elements, and its shape has {elements}",
            read.len()
        )));
    }
    Ok(read.into_data())
}

/// The elements of a tensor, each with its length in front of it; documents as JSON text.
///
/// # Errors
/// `INTERNAL` for an element that is too long for its length, and for one that is no document.
pub(crate) fn lengths_in_front(tensor: &Tensor) -> Result<Bytes> {
    let mut all = Vec::with_capacity(tensor.payload_bytes());
    let mut push = |element: &[u8]| -> Result<()> {
        let length = u32::try_from(element.len()).map_err(|_| {
            Error::internal(format!(
                "output {:?}: an element has {} bytes, more than its length can say",
                tensor.name(),
                element.len()
            ))
        })?;
        all.extend_from_slice(&length.to_le_bytes());
        all.extend_from_slice(element);
        Ok(())
    };
    for element in tensor.byte_strings() {
        match tensor.datatype() {
            DataType::Json => push(&document_text(tensor.name(), element)?)?,
            _ => push(element)?,
        }
    }
    Ok(all.into())
}

/// A document as JSON text.
///
/// # Errors
/// `INTERNAL` if it is none.
pub(crate) fn document_text(name: &str, document: &[u8]) -> Result<Vec<u8>> {
    let value: Result<Value, _> = rmp_serde::from_slice(document);
    value
        .map_err(|e| e.to_string())
        .and_then(|value| serde_json::to_vec(&value).map_err(|e| e.to_string()))
        .map_err(|e| Error::internal(format!("output {name:?}: a document has no JSON: {e}")))
}

/// What reading one JSON text may take.
const MAX_READ_BYTES: u64 = 1 << 30;

/// What a JSON text may take once it is read: a map of one entry has 700 bytes, any other value 64. What stands inside
/// strings counts too.
fn most_read_bytes(text: &[u8]) -> u64 {
    let bytes = text.iter().map(|byte| match byte {
        b'{' => 700,
        b',' | b'[' => 64,
        _ => 1,
    });
    bytes.sum()
}

/// A tensor of JSON texts as one of documents.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the tensor and the element that is no JSON.
pub(crate) fn to_documents(tensor: &Tensor) -> Result<Tensor> {
    let mut documents = Elements::new();
    for (index, text) in tensor.byte_strings().enumerate() {
        if most_read_bytes(text) > MAX_READ_BYTES {
            return Err(Error::invalid(format!(
                "tensor {:?}, element {index}: too many values in one JSON text; give it in several rows, or over ZeroMQ",
                tensor.name()
            )));
        }
        let document = serde_json::from_slice::<Value>(text)
            .map_err(|e| Error::invalid(format!("not JSON: {e}")))
            .and_then(|value| to_document(&value));
        let document = document
            .map_err(|e| e.context(format_args!("tensor {:?}, element {index}", tensor.name())))?;
        documents.push(&document);
    }
    let (name, shape) = (tensor.name(), tensor.shape().to_vec());
    Tensor::unchecked(name, DataType::Json, shape, documents.into_data())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_read_back_with_their_lengths() {
        let tensor = Tensor::from_strings("s", None, &["a", "", "bcd"]).unwrap();
        let bytes = lengths_in_front(&tensor).unwrap();
        assert_eq!(&bytes[..], b"\x01\0\0\0a\0\0\0\0\x03\0\0\0bcd");
        let data = with_lengths("s", 3, &bytes).unwrap();
        assert_eq!(&data, tensor.data());
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for (bytes, why) in [
            (
                &b"\x02\0\0\0a"[..],
                "element 0 says that it has 2 bytes, and 1 are left",
            ),
            (b"\xff\xff\xff\xffa", "has 4294967295 bytes"),
            (b"\x01\0\0\0a\x01", "1 bytes behind element 1"),
            (b"", "0 elements, and its shape has 1"),
            (b"\0\0\0\0\0\0\0\0", "more than the 1 elements"),
        ] {
            let error = with_lengths("s", 1, bytes).unwrap_err();
            assert!(error.message().contains(why), "{error}");
        }
    }

    #[test]
    fn json_text_becomes_documents_and_back() {
        let texts = Tensor::from_strings("r", None, &[r#"{"a":[1,null]}"#, "\"x\""]).unwrap();
        let documents = to_documents(&texts).unwrap().check_values(0).unwrap();
        assert_eq!(documents.datatype(), DataType::Json);
        let back = with_lengths("r", 2, &lengths_in_front(&documents).unwrap()).unwrap();
        assert_eq!(&back, texts.data());
        let vast = "[".to_owned() + &"{},".repeat(2_000_000) + "{}]";
        let vast = Tensor::from_strings("r", None, &[vast]).unwrap();
        assert!(
            to_documents(&vast)
                .unwrap_err()
                .message()
                .contains("several rows")
        );
        let odd = Tensor::from_strings("r", None, &["1", "{"]).unwrap();
        let error = to_documents(&odd).unwrap_err();
        assert!(
            error.message().contains("\"r\", element 1: not JSON"),
            "{error}"
        );
    }
}
