"""SQLAlchemy's ORM over psycopg 3, as its documentation has it: `Session.begin()` is a transaction."""

from __future__ import annotations

import os

from load import POOL_SIZE, Operations, run, think
from sqlalchemy import BigInteger, Select, create_engine, make_url, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"

    client: Mapped[str] = mapped_column(primary_key=True)
    worker: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int] = mapped_column(BigInteger)


# The URL names no driver, and SQLAlchemy's own choice differs between releases.
url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg")
engine = create_engine(url, pool_size=POOL_SIZE, max_overflow=0)


def transaction(client: str, worker: int) -> int:
    with Session(engine) as session, session.begin():
        session.execute(
            insert(Account)
            .values(client=client, worker=worker, balance=1)
            .on_conflict_do_update(
                index_elements=[Account.client, Account.worker],
                set_={"balance": Account.balance + 1},
            )
        )
        think()
        return session.scalars(_of(client, worker)).one().balance


def prepared(client: str, worker: int) -> int:
    """psycopg prepares what it sees for the sixth time on a connection."""
    with Session(engine) as session:
        return session.scalars(_of(client, worker)).one().balance


def single(worker: int) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT :worker"), {"worker": worker})


def _of(client: str, worker: int) -> Select[tuple[Account]]:
    return select(Account).where(Account.client == client, Account.worker == worker)


if __name__ == "__main__":
    run(Operations(transaction, prepared, single))
