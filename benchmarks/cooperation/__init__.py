"""What several devices that train one model cost, send and survive."""
