//! Datatypes: their names are those of the Open Inference Protocol (V2).

use std::fmt;

use crate::error::{Error, Result};

/// What the elements of a tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    /// One byte, 0 or 1.
    Bool,
    /// Signed, 1 byte.
    Int8,
    /// Signed, 2 bytes.
    Int16,
    /// Signed, 4 bytes.
    Int32,
    /// Signed, 8 bytes.
    Int64,
    /// Unsigned, 1 byte.
    Uint8,
    /// Unsigned, 2 bytes.
    Uint16,
    /// Unsigned, 4 bytes.
    Uint32,
    /// Unsigned, 8 bytes.
    Uint64,
    /// IEEE 754 half precision.
    Fp16,
    /// bfloat16: the upper half of an FP32.
    Bf16,
    /// IEEE 754 single precision.
    Fp32,
    /// IEEE 754 double precision.
    Fp64,
    /// Byte strings of any length; UTF-8 where a model wants strings.
    Bytes,
    /// Rows that are not numbers: each element is one msgpack document.
    Json,
}

impl DataType {
    /// Every datatype, in the order of the wire's documentation.
    pub const ALL: [DataType; 15] = [
        DataType::Bool,
        DataType::Int8,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::Uint8,
        DataType::Uint16,
        DataType::Uint32,
        DataType::Uint64,
        DataType::Fp16,
        DataType::Bf16,
        DataType::Fp32,
        DataType::Fp64,
        DataType::Bytes,
        DataType::Json,
    ];

    /// The name on the wire, such as `FP32`.
    pub fn name(self) -> &'static str {
        match self {
            DataType::Bool => "BOOL",
            DataType::Int8 => "INT8",
            DataType::Int16 => "INT16",
            DataType::Int32 => "INT32",
            DataType::Int64 => "INT64",
            DataType::Uint8 => "UINT8",
            DataType::Uint16 => "UINT16",
            DataType::Uint32 => "UINT32",
            DataType::Uint64 => "UINT64",
            DataType::Fp16 => "FP16",
            DataType::Bf16 => "BF16",
            DataType::Fp32 => "FP32",
            DataType::Fp64 => "FP64",
            DataType::Bytes => "BYTES",
            DataType::Json => "JSON",
        }
    }

    /// Reads a name off the wire.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a name that is none of [`DataType::ALL`].
    pub fn parse(name: &str) -> Result<DataType> {
        DataType::ALL
            .into_iter()
            .find(|datatype| datatype.name() == name)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "unknown datatype {name:?}; expected one of {}",
                    DataType::ALL.map(DataType::name).join(", ")
                ))
            })
    }

    /// Bytes per element, or `None` where elements differ in length (BYTES, JSON).
    pub fn size(self) -> Option<usize> {
        match self {
            DataType::Bool | DataType::Int8 | DataType::Uint8 => Some(1),
            DataType::Int16 | DataType::Uint16 | DataType::Fp16 | DataType::Bf16 => Some(2),
            DataType::Int32 | DataType::Uint32 | DataType::Fp32 => Some(4),
            DataType::Int64 | DataType::Uint64 | DataType::Fp64 => Some(8),
            DataType::Bytes | DataType::Json => None,
        }
    }

    /// Payload frames per tensor: 1, or 2 where elements differ in length (offsets, then values).
    pub fn frames(self) -> usize {
        if self.size().is_some() { 1 } else { 2 }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Rust types that are elements of a fixed-size datatype.
pub trait Element: bytemuck::NoUninit + bytemuck::CheckedBitPattern + Default + fmt::Debug {
    /// The datatype that holds this type.
    const DATATYPE: DataType;
}

macro_rules! elements {
    ($($rust:ty => $datatype:ident),+ $(,)?) => {
        $(impl Element for $rust { const DATATYPE: DataType = DataType::$datatype; })+
    };
}
elements! {
    bool => Bool, i8 => Int8, i16 => Int16, i32 => Int32, i64 => Int64,
    u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64,
    half::f16 => Fp16, half::bf16 => Bf16, f32 => Fp32, f64 => Fp64,
}
