-- The benchmark's database: a shop's customers and its orders, partitioned by month, with as much
-- chance in each row as real ones have (about 3.5:1 with zstd -1). No random() and no clock: the
-- same rows every time. :orders is the number of orders.
\set ON_ERROR_STOP on
\set QUIET on
\pset pager off
set synchronous_commit = off;
set maintenance_work_mem = '256MB';
set max_parallel_maintenance_workers = 0;

-- A number from 0 up to and not including `below`, by chance; a different one for each `purpose`.
create function chance(of bigint, purpose int, below bigint) returns bigint
    language sql immutable parallel safe
    return ((hashint8extended(of, purpose) >> 1) & 4611686018427387903) % below;

-- Sentences of made-up words, the frequent ones short, as in any language.
create table words as
    select n, string_agg((array['ka','to','ri','ne','so','ma','lu','de','vi','pa','ro','ge','bi','fu','st','an',
                                'er','in','ou','el','ta','mo','si','na','ch','qu','tr','pl','ar','on','is','ek'])
                         [1 + chance(n, syllable, 32)], '' order by syllable) as word
    from generate_series(1, 4000) n, generate_series(1, 4) syllable
    where syllable <= 1 + (n > 30)::int + (n > 400)::int + chance(n, 9, 2)
    group by n;
create unique index on words (n);
create table notes as
    select id, string_agg(word, ' ' order by place) as note
    from generate_series(0, 99999) id
        cross join lateral generate_series(1, 4 + chance(id, 10, 12)::int) place
        -- Zipf's law: the n-th word about 1/n as often as the first.
        join words on n = floor(exp(chance(id * 16 + place, 11, 1000000) / 1000000.0 * ln(4000)))::int
    group by id;
create unique index on notes (id);
analyze notes;

create table customers (
    id bigint not null,
    name text not null,
    email text not null,
    address text not null,
    balance numeric(12, 2) not null,
    created_at timestamptz not null);
insert into customers
    select id, initcap(w1.word || ' ' || w2.word), w1.word || chance(id, 1, 10000) || '@' || w2.word || '.example',
           chance(id, 2, 300) || ' ' || initcap(w3.word) || ' Street, ' || lpad(chance(id, 3, 100000)::text, 5, '0'),
           chance(id, 4, 100000000) / 100.0,
           timestamptz '2019-01-01 00:00:00+00' + chance(id, 5, 180000000) * interval '1 second'
    from generate_series(1, :orders / 10) id
        join words w1 on w1.n = 1 + chance(id, 6, 4000)
        join words w2 on w2.n = 1 + chance(id, 7, 4000)
        join words w3 on w3.n = 1 + chance(id, 8, 4000)
    order by id;
alter table customers add primary key (id);

create table orders (
    id bigint not null,
    customer_id bigint not null,
    placed_at timestamptz not null,
    updated_at timestamptz not null,
    status text not null,
    currency char(3) not null,
    total numeric(10, 2) not null,
    reference text not null,
    details jsonb not null,
    note text not null) partition by range (placed_at);
select format('create table orders_2025_%s partition of orders for values from (''2025-%s-01'') to (''%s-01'')',
              to_char(m, 'MM'), to_char(m, 'MM'), to_char(m + interval '1 month', 'YYYY-MM'))
    from generate_series(timestamp '2025-01-01', '2025-12-01', '1 month') m \gexec
insert into orders
    select i, 1 + chance(i, 21, :orders / 10), placed_at, placed_at + chance(i, 22, 500000) * interval '1 second',
           (array['new','paid','packed','shipped','delivered','delivered','delivered','returned'])[1 + chance(i, 23, 8)],
           (array['EUR','EUR','EUR','USD','USD','GBP','CHF','JPY'])[1 + chance(i, 24, 8)],
           chance(i, 25, 1000 * (1 + chance(i, 26, 200))) / 100.0,
           'ORD-' || upper(substr(md5(i::text), 1, 8)),
           jsonb_build_object(
               'source', (array['web','web','app','app','phone'])[1 + chance(i, 27, 5)], 'items', 1 + chance(i, 28, 5),
               'gift', chance(i, 30, 12) = 0, 'coupon', null,
               'carrier', (array['ground','ground','ground','express','pickup'])[1 + chance(i, 33, 5)],
               'warehouse', 'WH-' || 1 + chance(i, 34, 20),
               'agent', 'Mozilla/5.0 (' || (array['X11; Linux x86_64','Macintosh; Intel Mac OS X 10_15_7',
                        'Windows NT 10.0; Win64; x64','Linux; Android 14; K'])[1 + chance(i, 36, 4)]
                        || ') AppleWebKit/537.36 (KHTML, like Gecko) Chrome/' || 120 + chance(i, 37, 12)),
           note
    from generate_series(1, :orders) i
        cross join lateral (select timestamptz '2025-01-01 00:00:00+00'
                                   + i * (interval '364 days' / :orders) as placed_at) as placed
        join notes on notes.id = chance(i, 29, 100000);
drop table notes, words;

alter table orders add primary key (id, placed_at);
create index on orders (customer_id);
create index on orders (reference);
create index on orders (updated_at);
create sequence order_ids;
select setval('order_ids', :orders) \gset

-- Some life, so that pages and indexes are not packed to the brim.
update orders set status = 'returned', updated_at = updated_at + interval '30 days' where chance(id, 31, 40) = 0;
delete from orders where chance(id, 32, 200) = 0;
vacuum (freeze, analyze);
checkpoint;
