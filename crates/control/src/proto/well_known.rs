//! The few messages of `google.protobuf` and `google.rpc` that the others contain.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{Message, Oneof};

/// `google.protobuf.Any`: a message and the name of what it is.
#[derive(Clone, PartialEq, Message)]
pub struct Any {
    /// What it is, `type.googleapis.com/PACKAGE.NAME`.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The message. Shares the memory of the response it came in.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// `google.rpc.Status`: why something was refused.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    /// A gRPC code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// In words.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// `google.protobuf.Struct`: a JSON object.
#[derive(Clone, PartialEq, Message)]
pub struct Struct {
    /// Its members.
    #[prost(btree_map = "string, message", tag = "1")]
    pub fields: BTreeMap<String, Value>,
}

impl Struct {
    /// An object of texts.
    pub fn of_texts<'a>(members: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let fields = members.into_iter().map(|(name, text)| (name.to_owned(), Value::text(text)));
        Self { fields: fields.collect() }
    }
}

/// `google.protobuf.Value`: a JSON value.
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    /// Which.
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub kind: Option<Kind>,
}

impl Value {
    /// A JSON string.
    pub fn text(text: &str) -> Self {
        Self { kind: Some(Kind::Text(text.to_owned())) }
    }
}

/// What a JSON value can be.
#[derive(Clone, PartialEq, Oneof)]
pub enum Kind {
    /// `null`, which is always 0.
    #[prost(int32, tag = "1")]
    Null(i32),
    /// A number.
    #[prost(double, tag = "2")]
    Number(f64),
    /// A string.
    #[prost(string, tag = "3")]
    Text(String),
    /// `true` or `false`.
    #[prost(bool, tag = "4")]
    Truth(bool),
    /// An object.
    #[prost(message, tag = "5")]
    Object(Struct),
    /// An array.
    #[prost(message, tag = "6")]
    List(List),
}

/// `google.protobuf.ListValue`: a JSON array.
#[derive(Clone, PartialEq, Message)]
pub struct List {
    /// Its elements.
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<Value>,
}
