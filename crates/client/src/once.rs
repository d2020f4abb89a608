//! A connector for one connection. A channel would open another one when that ends, to whatever
//! listens at the address by then; the client first finds out who that is.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use tonic::codegen::{Service, StdError, http::Uri};

/// Opens one connection, and no other.
pub(crate) struct Once(Option<HttpConnector>);

impl Once {
    pub(crate) fn new(timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(timeout));
        Self(Some(connector))
    }
}

impl Service<Uri> for Once {
    type Response = <HttpConnector as Service<Uri>>::Response;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, StdError>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let connector = self.0.take();
        Box::pin(async move {
            let mut connector = connector.ok_or("the connection was closed")?;
            poll_fn(|context| connector.poll_ready(context)).await?;
            Ok(connector.call(address).await?)
        })
    }
}
