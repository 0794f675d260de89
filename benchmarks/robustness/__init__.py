"""What do damaged, odd and mutated inputs lead to: a result, a message, or a traceback?"""
