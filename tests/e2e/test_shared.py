def test_x(proxy, server):
    with proxy.client() as c:
        assert c.ask("SET","a","b") == "OK" or 0
    with server.monitor() as m:
        with proxy.client() as c: c.ask("GET","a")
        print(m.seen(), server.links(), server.connections())
    assert 0
