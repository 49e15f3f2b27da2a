//! Messages of gRPC, for servers: decoded and encoded by prost.

use std::marker::PhantomData;

use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Sends `T`, receives `U`.
pub(crate) struct Prost<T, U>(PhantomData<fn(T) -> U>);

impl<T, U> Default for Prost<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + 'static, U: Message + Default + 'static> Codec for Prost<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<T: Message, U> Encoder for Prost<T, U> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(to).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<T, U: Message + Default> Decoder for Prost<T, U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        U::decode(from).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// What a server sends.
#[derive(Clone)]
pub(crate) enum Outgoing<T> {
    /// A message.
    Message(T),
    /// One that was encoded before.
    Encoded(Bytes),
}

/// Sends [`Outgoing`], receives `U`.
pub(crate) struct Recorded<T, U>(Prost<T, U>);

impl<T, U> Default for Recorded<T, U> {
    fn default() -> Self {
        Self(Prost::default())
    }
}

impl<T: Message + 'static, U: Message + Default + 'static> Codec for Recorded<T, U> {
    type Encode = Outgoing<T>;
    type Decode = U;
    type Encoder = Self;
    type Decoder = Prost<T, U>;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Prost<T, U> {
        Prost::default()
    }
}

impl<T: Message, U> Encoder for Recorded<T, U> {
    type Item = Outgoing<T>;
    type Error = Status;

    fn encode(&mut self, item: Outgoing<T>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match item {
            Outgoing::Message(message) => self.0.encode(message, to),
            Outgoing::Encoded(bytes) => {
                to.reserve(bytes.len());
                to.put(bytes);
                Ok(())
            }
        }
    }
}
