//! Queries straight on the pool.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use crac_core::Pass;
use futures_core::{Stream, future::BoxFuture, stream::BoxStream};
use futures_util::{FutureExt, TryStreamExt};
use sqlx::{Database, Either, Error, Execute, Executor, SqlStr};

use crate::Pool;

impl<'p, DB: Database> Executor<'p> for &'_ Pool<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    type Database = DB;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<DB::QueryResult, DB::Row>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let admission = self.admission().clone();
        let answers = async move {
            let (pool, pass) = admission.admit().await?;
            Ok::<_, Error>(Admitted { answers: (&pool).fetch_many(query), _pass: pass })
        };
        Box::pin(answers.into_stream().try_flatten())
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<DB::Row>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let admission = self.admission().clone();
        Box::pin(async move {
            let (pool, _pass) = admission.admit().await?;
            (&pool).fetch_optional(query).await
        })
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [DB::TypeInfo]) -> BoxFuture<'e, Result<DB::Statement, Error>>
    where
        'p: 'e,
    {
        let admission = self.admission().clone();
        Box::pin(async move {
            let (pool, _pass) = admission.admit().await?;
            (&pool).prepare_with(sql, parameters).await
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<DB>, Error>>
    where
        'p: 'e,
    {
        let admission = self.admission().clone();
        Box::pin(async move {
            let (pool, _pass) = admission.admit().await?;
            (&pool).describe(sql).await
        })
    }
}

/// The answers of a query that was let in, until they are dropped.
struct Admitted<'e, T> {
    answers: BoxStream<'e, Result<T, Error>>,
    _pass: Pass,
}

impl<T> Stream for Admitted<'_, T> {
    type Item = Result<T, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.answers.as_mut().poll_next(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.answers.size_hint()
    }
}
