-- One customer orders, another order moves on; some orders and customers are more popular than others.
\set buyer random_zipfian(1, :orders / 10, 1.05)
\set moved :orders - random_exponential(1, :orders, 20) + 1
\set cents random(100, 200000)
\set salt random(1, 1000000000)
begin;
insert into orders
    select i, :buyer, timestamptz '2025-12-31 00:00:00+00', now(), 'new', 'EUR', :cents::numeric / 100,
           'ORD-' || upper(substr(md5(i::text), 1, 8)), jsonb_build_object('source', 'web', 'items', 1 + :salt::int % 5,
           'gift', false, 'coupon', null, 'carrier', 'ground', 'warehouse', 'WH-' || 1 + :salt::int % 20, 'agent',
           'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/' || 120 + :salt::int % 12),
           case when :salt::int % 5 < 3 then substr(translate(md5(:salt::int::text), '0123456789', ' eatoinsrh'), 1, 10 + :salt::int % 20) else '' end
    from nextval('order_ids') i;
update customers set balance = balance - :cents::numeric / 100 where id = :buyer;
update orders set status = 'shipped', updated_at = now()
    where id = :moved::bigint
    and placed_at = timestamptz '2025-01-01 00:00:00+00' + :moved::bigint * (interval '364 days' / :orders);
commit;
